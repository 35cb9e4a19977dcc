"""An API server for all tests, and a namespace for each."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import base_image, env_file, images, proxies
from scripts.console import BUILD_FOLDER, ROOT, run_logged
from scripts.engine import docker
from tests.conftest import PROJECT, prepare
from tests.kubernetes.api_server import Shell, api_server

NAME = f"{PROJECT}-kubernetes"
CONTEXT = Path(__file__).parent


@pytest.fixture(scope="session")
def image() -> str:
    """Compiled for minutes the first time; later the engine has its layers."""
    env = BUILD_FOLDER / NAME / ".env"
    prepare(env, NAME, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STACK_ENV_FILE", str(env))
        proxies.record()
        base_image.ensure()
        images.write_certificates()
        given = {
            **proxies.recorded(),
            "BASE_IMAGE": env_file.settings()["BASE_IMAGE"],
            "GOPROXY": os.environ.get("GOPROXY", ""),
        }
    arguments = [part for name in given for part in ("--build-arg", name)]
    run_logged(
        "Building Kubernetes's API server (minutes, once)",
        [docker(), "build", "--progress", "plain", "--tag", NAME, *arguments,
         "--secret", f"id=extra_ca,src={images.CERTIFICATES_FILE}", str(CONTEXT)],
        detail=images.build_step, excerpt=images.reason, environment=given,
    )  # fmt: skip
    return NAME


@pytest.fixture(scope="session")
def server(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with api_server(NAME, image, tmp_path_factory.mktemp("kubernetes")) as shell:
        yield shell


@pytest.fixture
def shell(server: Shell, tmp_path: Path) -> Shell:
    """In a checkout, with a namespace of its own that takes only pods of the strictest standard."""
    name = f"test-{secrets.token_hex(4)}"
    server.accepts(f"kubectl create namespace {name}")
    for mode in ("enforce", "warn"):
        server.accepts(f"kubectl label namespace {name} pod-security.kubernetes.io/{mode}=restricted")
    # As a controller would that is not here: no pod is taken without.
    server.accepts(f"kubectl create serviceaccount default --namespace {name}")
    for file in ("config", "authority"):
        shutil.copy(server.config.with_name(file), tmp_path)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    own = Shell(tmp_path / "config", tmp_path)
    own.accepts(f"kubectl config set-context --current --namespace={name}")
    return own
