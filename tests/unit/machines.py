"""Machines for the tests of scripts/: a folder of programs in place of PATH, and a copy of this project."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.console import ROOT

#: What the scripts need of the project.
PROJECT_FILES = (
    "scripts",
    "dagster_stack",
    "docker",
    "requirements",
    ".env.example",
    "Makefile",
    "compose.yaml",
    "compose",
    "celery.yaml",
    "pipelines",
)

#: Run before a script in its process: nothing of the real machine's engine is found, and no engine started.
HIDE_REAL_ENGINE = """
from pathlib import Path
from scripts import engine
engine.SYSTEM_FOLDERS = []
engine.SOCKET = Path("/nonexistent/docker.sock")
engine.PID_FILES = {}
engine.start_by_hand = engine.start_by_systemd = lambda *_: exit("the test must not start an engine")
"""


#: What the image says of code that loads.
CHECKED = '{"project": {}, "reports": [{}], "warnings": [], "errors": {}, "variables": {}, "missing": [], "dbt": {}, "code": "new"}'


@dataclass(frozen=True)
class FakeDocker:
    """A docker client as the real one answers, exit codes and streams included, each seen on Docker 26.1:

    - a plugin that is missing: `docker: 'compose' is not a docker command.` on stderr, exit code 1;
    - an engine that does not answer: "Cannot connect to the Docker daemon …" on stderr, an empty line on
      stdout for `version --format {{.Server.Version}}`, exit code 1;
    - `image inspect` of an image that is not here: `[]` and "No such image", exit code 1;
    - `pull` without a registry: "Error response from daemon: … no such host", exit code 1;
    - `ps --format {{.Ports}}`: what the container publishes, neighbouring ports as a range.

    Every call is appended to `calls` beside it.
    """

    compose: str | None = "2.26.1"
    buildx: bool = True
    engine: str | None = "26.1.5"
    images: tuple[str, ...] = ()
    pulls: bool = False
    ports: str = ""

    def install(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        no_plugin = "echo \"docker: '$1' is not a docker command.\" >&2; exit 1"
        no_engine = "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1"
        script = f"""#!/bin/bash
echo "$*" >> {folder}/calls
[[ "$*" == *dagster_stack.project.check* ]] && {{ echo '{CHECKED}'; exit 0; }}
case "$1 $2" in
  "compose version") {f"echo {self.compose}" if self.compose else no_plugin} ;;
  "compose "*) {"exit 0" if self.compose else no_plugin} ;;
  "buildx "*) {"echo buildx 0.13.1" if self.buildx else no_plugin} ;;
  "version "*) {f"echo {self.engine}" if self.engine else f"echo; {no_engine}"} ;;
  "info "*) {"echo /" if self.engine else no_engine} ;;
  "ps "*) [[ "$*" != *.Ports* ]] || echo '{self.ports}' ;;
  "pull "*) {"exit 0" if self.pulls else "echo 'Error response from daemon: no such host' >&2; exit 1"} ;;
  "image inspect") for last; do :; done
    case " {" ".join(self.images)} " in *" $last "*) echo sha256:1 ;; *) echo '[]'; echo 'No such image' >&2; exit 1 ;; esac ;;
  *) exit 0 ;;
esac
"""
        client = folder / "docker"
        client.write_text(script)
        client.chmod(0o755)
        return client


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


@dataclass(frozen=True)
class Machine:
    """A copy of the project, and a PATH on which only the named programs are."""

    root: Path

    @property
    def programs(self) -> Path:
        return self.root / "programs"

    @property
    def env(self) -> Path:
        return self.root / ".env"

    def has(self, *programs: str) -> None:
        """Put real programs of this machine on the PATH."""
        self.programs.mkdir(exist_ok=True)
        for program in programs:
            real = shutil.which(program)
            assert real, f"this machine has no {program}"
            (self.programs / program).symlink_to(real)

    def script(
        self, name: str, *arguments: str, prelude: str = "", user: int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m scripts.<name>` there, without a terminal."""
        code = (
            f"{HIDE_REAL_ENGINE}\n{prelude}\nimport runpy, sys\nsys.argv = ['x', *{list(arguments)!r}]\n"
            f"runpy.run_module('scripts.{name}', run_name='__main__')"
        )
        # Another user can't enter root's home, where this Python may be.
        python = sys.executable if user is None else "/usr/bin/python3"
        return subprocess.run(
            [python, "-c", code],
            cwd=self.root,
            env={"PATH": str(self.programs), "PYTHONDONTWRITEBYTECODE": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            check=False,
        )


@contextmanager
def machine() -> Iterator[Machine]:
    # Not in pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        root.chmod(0o755)
        for file in PROJECT_FILES:
            source = ROOT / file
            if source.is_dir():
                shutil.copytree(source, root / file, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / file)
        (root / "programs").mkdir()
        yield Machine(root)


def is_root() -> bool:
    return os.geteuid() == 0
