"""uv on this host, in an environment of its own: locks are resolved although nothing that they hold is installed."""

from pathlib import Path

from dagster_stack.packages import locks
from scripts import venv
from scripts.console import BUILD_FOLDER, run_logged

FOLDER = BUILD_FOLDER / "uv"
LOCK = venv.REQUIREMENTS / "build.lock"


def ensure() -> Path:
    """The program in the version that requirements/build.lock has; the newest where that is damaged."""
    pinned = locks.entry(LOCK.read_text(encoding="utf-8"), "uv") if LOCK.exists() else ""
    stamp, program = FOLDER / "stamp", FOLDER / "bin" / "uv"
    wanted = pinned or "newest"
    if program.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return program
    venv.make(FOLDER)
    pip = [
        str(FOLDER / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    if pinned:
        requirements = FOLDER / "requirements.lock"
        requirements.write_text(pinned, encoding="utf-8")
        pip += ["--require-hashes", "--no-deps", "-r", str(requirements)]
    run_logged("Installing uv", [*pip, *([] if pinned else ["uv"])])
    stamp.write_text(wanted, encoding="utf-8")
    return program
