"""A restore that is not finished, or waits for somebody's choice: nothing else may start the stack meanwhile."""

from pathlib import Path

from scripts import compose, env_file
from scripts.console import BUILD_FOLDER, Failure

RESTORING, RESTORED = "restoring", "restored"


def file() -> Path:
    return BUILD_FOLDER / compose.project() / "restore"


def state() -> str:
    """RESTORING, RESTORED while its choice is to be made, else empty."""
    try:
        return file().read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def note(state: str) -> None:
    env_file.hand_on(file(), state, like=env_file.env_path())


def require_none() -> None:
    """Raises Failure that says how the restore goes on."""
    match state():
        case "":
            return
        case "restored":
            raise Failure(
                "A restore waits for your choice what becomes of runs under way: make restore RUNS=resume|cancel"
                " SCHEDULES=catch-up|skip"
            )
        case _:
            raise Failure(
                "A restore was interrupted, so the stores are not whole: `make restore` again, with the same TO and FROM,"
                " completes it."
            )
