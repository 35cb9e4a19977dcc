"""The limit of a container's processes and threads, for the error of a step that exceeds it."""

import re
from pathlib import Path
from typing import Any

from dagster._core.events.log import EventLogEntry
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.worker.memory import CGROUPS

SETTING = "WORKER_PIDS"
#: What Python, and libraries in C, say when a thread or a process can't be started.
REFUSED = re.compile(r"can't start new thread|Resource temporarily unavailable|pthread_create failed")
#: Where the two versions of control groups keep the limit, and how often it has refused one.
FOLDERS = ("pids", "")


def naming_limit(entry: EventLogEntry, folder: Path = CGROUPS) -> EventLogEntry:
    """A step's failure, with the setting added when the limit refused it a thread or process."""
    event = entry.get_dagster_event()
    data: Any = event.event_specific_data
    error = getattr(data, "error", None)
    if not isinstance(error, SerializableErrorInfo) or not REFUSED.search(error.to_string()):
        return entry
    most = limit(folder)
    if most is None:
        return entry
    hint = f"Its container may have {most} processes and threads, steps' included: {SETTING} in .env is the limit."
    told = event._replace(
        message=f"{event.message} {hint}",
        event_specific_data=data._replace(error=error._replace(message=f"{error.message.rstrip()} {hint}\n")),
    )
    return entry._replace(dagster_event=told, user_message=str(told.message))


def limit(folder: Path) -> int | None:
    """The limit, if there is one, and it has refused a process or thread since the container's start."""
    for part in FOLDERS:
        try:
            most = (folder / part / "pids.max").read_text().strip()
            refused = (folder / part / "pids.events").read_text().strip()
        except OSError:
            continue
        return int(most) if most.isdecimal() and refused != "max 0" else None
    return None
