"""The API server of Kubernetes in a container: it judges objects and keeps them. Nothing acts on them: no pod starts."""

import os
import secrets
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.console import ROOT
from scripts.engine import docker
from tests.waiting import wait_until

PORT = "6443/tcp"
START_SECS = 120
#: Where it has the certificate that it makes for itself, and KEDA's kinds.
CERTIFICATE, KINDS = "/tmp/certificates/apiserver.crt", "/usr/local/share/keda"
#: It keeps all in memory, may do nothing but serve, and is reached from this host alone.
OPTIONS = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
           "--publish", f"127.0.0.1::{PORT}", "--env", "TOKEN")  # fmt: skip


@dataclass(frozen=True)
class Shell:
    """Where somebody types: a folder, and a `kubectl` that knows cluster and namespace."""

    config: Path
    folder: Path = ROOT

    def accepts(self, command: str, given: str = "") -> str:
        """What a command prints that must succeed, and warn of nothing."""
        result = self._type(command, given)
        assert (result.returncode, result.stderr) == (0, ""), f"{command}\n{result.stderr}{result.stdout}"
        return result.stdout

    def refuses(self, command: str, given: str = "") -> str:
        """Why a command fails that must."""
        result = self._type(command, given)
        assert result.returncode, f"{command}\n{result.stdout}"
        return result.stderr

    def answers(self) -> bool:
        return self._type("kubectl get --raw /readyz").stdout == "ok"

    def _type(self, command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        # Beside its configuration it also keeps what kinds a server has.
        own = {"PATH": path, "HOME": str(self.config.parent), "KUBECONFIG": str(self.config)}
        return subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env={**os.environ, **own}, input=given, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip


@contextmanager
def api_server(name: str, image: str, folder: Path) -> Iterator[Shell]:
    """One with nothing in it but KEDA's kinds, which answers on 127.0.0.1 alone; gone behind the body."""
    token = secrets.token_hex()
    engine("rm", "--force", "--volumes", name)
    try:
        engine("run", "--detach", "--name", name, *OPTIONS, image, TOKEN=token)
        address = engine("port", name, PORT).strip()
        authority = wait_until(
            lambda: engine("exec", name, "cat", CERTIFICATE, check=False), START_SECS, "its certificate"
        )
        (folder / "authority").write_text(authority)
        (folder / "config").write_text(yaml.safe_dump(access(f"https://{address}", token)))
        shell = Shell(folder / "config")
        wait_until(shell.answers, START_SECS, "the API server is ready")
        for kind in ("scaledobjects", "triggerauthentications"):
            definition = engine("exec", name, "cat", f"{KINDS}/keda.sh_{kind}.yaml")
            shell.accepts("kubectl create --filename -", definition)
            shell.accepts(f"kubectl wait --for=condition=established crd/{kind}.keda.sh")
        yield shell
    finally:
        engine("rm", "--force", "--volumes", name)


def access(server: str, token: str) -> dict[str, Any]:
    """What `kubectl` needs to know: an administrator's."""
    cluster = {"server": server, "certificate-authority": "authority", "tls-server-name": "localhost"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


def engine(*arguments: str, check: bool = True, **environment: str) -> str:
    """What the Docker engine says; nothing when it refuses and need not do it."""
    result = subprocess.run(
        [docker(), *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert not check or not result.returncode, result.stderr
    return "" if result.returncode else result.stdout
