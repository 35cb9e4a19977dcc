"""What was done last, and what went wrong: a file of the repository, for figures and lists."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from backup.settings import REPOSITORY

FILE = REPOSITORY / "state.json"


def read(file: Path = FILE) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def note(file: Path = FILE, **values: Any) -> None:
    """Set these, and leave all else; a value of None takes it away."""
    with Path("/tmp/state.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = {key: value for key, value in {**read(file), **values}.items() if value is not None}
        scratch = file.with_suffix(".new")
        with scratch.open("w", encoding="utf-8") as stream:
            json.dump(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(file)
