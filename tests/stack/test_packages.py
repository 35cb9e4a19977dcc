"""Packages by file, in the image's build: a private index, a private repository, and what is made again for what.

No stack runs: each test builds the image of a small project, up to where its packages are.
"""

import base64
import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import base_image, images
from scripts.console import ROOT
from scripts.engine import docker
from tests.unit.wheels import LOCAL_BACKEND, wheel

PASSWORD = "hush-8c1f0e"


class Handler(SimpleHTTPRequestHandler):
    """Files for those who know the password."""

    def do_GET(self) -> None:
        login = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def private(tmp_path: Path) -> Iterator[str]:
    """The address, on this host, of an index with `private-plot` and of a repository with `private-lib`."""
    folder = tmp_path / "private"
    wheel(folder / "simple/private-plot", "private-plot", "3.1")
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "backend.py").write_text(LOCAL_BACKEND.replace("mylib", "private_lib"))
    (lib / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "private-lib"\nversion = "1.0"\n'
    )
    author = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        [*author, "commit", "--quiet", "--message", "x"],
        ["clone", "--quiet", "--bare", ".", str(folder / "lib.git")],
        ["--git-dir", str(folder / "lib.git"), "update-server-info"],
    ):
        subprocess.run(["git", *command], cwd=lib, check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@dataclass
class Build:
    """Builds of the image with a project's folder; the images are removed in the end."""

    folder: Path
    made: list[str] = field(default_factory=list)

    @property
    def project(self) -> Path:
        path = self.folder / "context" / "my_project"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def __call__(self, target: str = "", **secrets: str) -> tuple[int, str]:
        """Build up to a stage; returns the exit code and the log."""
        tag = f"test-packages:{len(self.made)}"
        self.made.append(tag)
        images.write_certificates(file=self.folder / "extra_ca")
        for name, text in secrets.items():
            (self.folder / name).write_text(text)
        given = [f"--secret=id={name},src={self.folder / name}" for name in ("extra_ca", *secrets)]
        base = (
            base_image.LOCAL_IMAGE if base_image.is_here(base_image.LOCAL_IMAGE) else base_image.PUBLIC_IMAGE
        )
        result = subprocess.run(
            [docker(), "build", "--progress", "plain", "--network", "host", "--tag", tag, *given,
             "--file", "docker/dagster/Dockerfile", f"--build-arg=BASE_IMAGE={base}",
             f"--build-context=project={self.project.parent}", *([f"--target={target}"] if target else []), "."],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return result.returncode, result.stdout

    def run(self, *command: str) -> str:
        """What a command prints in the last image."""
        return subprocess.run(
            [docker(), "run", "--rm", "--network", "none", "--entrypoint", command[0], self.made[-1], *command[1:]],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def holds(self, text: str) -> bool:
        """Whether the last image has a text in any file of any layer, or in its history."""
        with subprocess.Popen([docker(), "save", self.made[-1]], stdout=subprocess.PIPE) as save:
            assert save.stdout
            rest = b""
            found = False
            while chunk := save.stdout.read(1 << 20):
                found = found or text.encode() in rest + chunk
                rest = chunk[-len(text) :]
        return found


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    build = Build(tmp_path)
    yield build
    subprocess.run([docker(), "image", "rm", "--force", *build.made], capture_output=True, check=False)


def test_private_packages_come_in_and_their_password_stays_out(build: Build, private: str) -> None:
    # Given a project with a package of a private index, and one of a private repository
    (build.project / "requirements.txt").write_text(
        f"dagster==1.13.*\nprivate-plot\nprivate-lib @ git+http://{private}/lib.git@main\n"
    )
    index = json.dumps({"PIP_EXTRA_INDEX_URL": f"http://me:{PASSWORD}@{private}/simple"})

    # When its image is built with the logins as secrets
    code, log = build(
        "project-packages", package_index=index, netrc=f"machine 127.0.0.1 login me password {PASSWORD}\n"
    )

    # Then both are there, and the password is in no layer and no log
    assert code == 0, images.reason(log)
    found = build.run("find", "/added", "-name", "private_*.py")
    assert "private_plot.py" in found
    assert "private_lib.py" in found
    assert PASSWORD not in log
    assert not build.holds(PASSWORD)


def test_without_the_login_the_failed_build_names_the_setting(build: Build, private: str) -> None:
    (build.project / "requirements.txt").write_text("private-plot\n")

    code, log = build(
        "project-packages", package_index=json.dumps({"PIP_EXTRA_INDEX_URL": f"http://{private}/simple"})
    )

    assert code != 0
    assert "NETRC in .env" in images.reason(log)


def test_a_new_debian_package_installs_no_python_package_again_nor_the_other_way_round(build: Build) -> None:
    # Given an image with a Python package of the project
    requirements, packages = build.project / "requirements.txt", build.project / "packages.txt"
    (build.project / "__init__.py").write_text("import dagster as dg\n\ndefs = dg.Definitions()\n")
    # The engine remembers earlier builds with the same files: these are new.
    new = f"# {uuid.uuid4()}\ncowsay==6.1\n"
    requirements.write_text(new)
    code, log = build()
    assert code == 0, images.reason(log)

    # When a Debian package is added, then another Python package
    packages.write_text("# A pager.\nless\n")
    code, with_debian = build()
    assert code == 0, images.reason(with_debian)
    requirements.write_text(f"{new}pyfiglet\n")
    code, with_python = build()
    assert code == 0, images.reason(with_python)

    # Then each build made its own part alone, and the image has all of them
    assert is_cached(with_debian, "dagster_stack.packages.install")
    assert is_cached(with_python, "/tmp/debian.txt")
    assert not is_cached(with_python, "dagster_stack.packages.install")
    assert "less" in build.run("less", "--version")
    assert build.run("python3", "-c", "import cowsay, pyfiglet, dagster; print(dagster.__version__)")


def test_what_moves_or_gives_way_is_told_and_the_image_has_one_version_of_it(build: Build) -> None:
    # Given a pin of another Dagster, and one of what only others of the platform's need
    (build.project / "__init__.py").write_text("import dagster as dg\n\ndefs = dg.Definitions()\n")
    (build.project / "requirements.txt").write_text("dagster==1.12.4\ncertifi==2025.1.31\n")

    code, log = build()

    assert code == 0, images.reason(log)
    told = build.run("cat", "/opt/dagster/requirements/replaced.txt")
    assert "asks for dagster==1.12.4: the platform's dagster 1.13." in told
    assert "certifi 2025.1.31 came in place" in told
    versions = "from importlib.metadata import distributions as d; print(*(e.version for e in d() if e.name == 'certifi'))"
    assert build.run("python3", "-c", versions).split() == ["2025.1.31"]


def is_cached(log: str, step: str) -> bool:
    """Whether BuildKit took the step that runs such a command from its cache."""
    number = next(line.split()[0] for line in log.splitlines() if step in line and line.startswith("#"))
    return f"{number} CACHED" in log.splitlines()
