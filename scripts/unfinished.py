"""A restore that is not finished, or waits for somebody's choice: nothing else may start the stack meanwhile."""

from pathlib import Path

from scripts import compose, env_file
from scripts.console import BUILD_FOLDER, Failure

RESTORING, RESTORED = "restoring", "restored"


def file() -> Path:
    return BUILD_FOLDER / compose.project() / "restore"


def state() -> str:
    """RESTORING, RESTORED while its choice is to be made, else empty."""
    return noted()[0]


def aim() -> tuple[str, str]:
    """TO and FROM of what was interrupted, as they were typed."""
    _, to, source = noted()
    return to, source


def noted() -> list[str]:
    try:
        lines = file().read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return (lines + [""] * 3)[:3]


def note(state: str, to: str = "", source: str = "") -> None:
    env_file.hand_on(file(), "\n".join([state, to, source]).strip(), like=env_file.env_path())


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
                "A restore was interrupted, so the stores are not whole: `make restore` completes it."
            )
