"""Threads that a step has left running in its process."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

#: Seconds that threads get to end after their step: those of a pool take a moment after they were told to.
GRACE_SECS = 0.1
LOOK_SECS = 0.005
#: Threads of the platform, by their names, which it starts during a step.
OWN = ("signs-of-life", "event-batch", "child-events", "step-output", "s3-part", "interruption")
#: Idle helpers that well-known libraries start once for a process, and that run no code of a step: of fsspec, of tqdm.
HELPERS = ("fsspecIO", "TMonitor")
TASKS = "/proc/self/task"
#: Where the processor time is in `/proc/<id>/stat`, counted behind the name.
TIMES = slice(11, 13)


class Threads:
    """The threads of this process as they are now, and those that are left of what was started since."""

    def __init__(self) -> None:
        self._python = set(threading.enumerate())
        self._tasks = set(os.listdir(TASKS))

    def left(self) -> list[str]:
        """How each that still runs is called, and what it executes; native ones only if they use the processor."""
        until = time.monotonic() + GRACE_SECS
        while (found := self._started()) and time.monotonic() < until:
            time.sleep(LOOK_SECS)
        return [*map(_described, found), *self._busy_native()]

    def _started(self) -> list[threading.Thread]:
        return [
            each
            for each in threading.enumerate()
            if each not in self._python
            and not each.name.startswith(OWN)
            and each.name not in HELPERS
            and type(each).__name__ not in HELPERS
        ]

    def _busy_native(self) -> list[str]:
        """Pools of numerical libraries sleep between their calls."""
        known = self._tasks | {str(each.native_id) for each in threading.enumerate()}
        before = {name: _times(name) for name in os.listdir(TASKS) if name not in known}
        until = time.monotonic() + GRACE_SECS
        # A thread that has just ended takes an instant to be gone.
        while (
            now := {name: times for name in before if (times := _times(name))}
        ) and time.monotonic() < until:
            time.sleep(LOOK_SECS)
        return [f"native thread {name}" for name, times in now.items() if times != before[name]]


def _times(task: str) -> list[str] | None:
    with suppress(OSError):
        return (Path(TASKS) / task / "stat").read_text().rpartition(")")[2].split()[TIMES]
    return None


def _described(thread: threading.Thread) -> str:
    target = getattr(thread, "_target", None)
    code = target if target else type(thread)
    name = getattr(code, "__qualname__", None)
    return f'"{thread.name}"' + (f" of {code.__module__}.{name}" if name else "")
