"""Named shared memory (/dev/shm): what a step leaves there takes the container's memory until it is removed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
#: Set in compose.yaml to the size that .env gives it: the folder is this container's own.
VARIABLE = "DAGSTER_STACK_SHM"
SETTING = "WORKER_SHM"
#: The part of it that is left when it counts as full.
NEARLY_FULL = 0.05


@dataclass
class Worker:
    """What was there before the worker's pool; None: the folder, or a part of it, is somebody else's too."""

    before: frozenset[str] | None = None


_worker = Worker()


def remember_worker(concurrency: int) -> None:
    """With several processes the owner of a segment is unknown; then Python's tracker of each step removes its own."""
    own = concurrency == 1 and bool(os.environ.get(VARIABLE))
    _worker.before = names() if own else None


def clear_worker() -> None:
    """Remove what the worker's only process left when it ended."""
    if _worker.before is not None:
        remove(names() - _worker.before)


@contextmanager
def cleared() -> Iterator[None]:
    """Remove, at the end, what was made meanwhile."""
    if _worker.before is None:
        yield
        return
    before = names()
    try:
        yield
    finally:
        remove(names() - before)


def names() -> frozenset[str]:
    try:
        return frozenset(os.listdir(FOLDER))
    except OSError:
        return frozenset()


def remove(left: frozenset[str]) -> None:
    for name in left:
        with suppress(OSError):
            (FOLDER / name).unlink()
    if left:
        logger.info(
            "removed from %s: %s", FOLDER, ", ".join(sorted(left)), extra={"action": "step.memory_removed"}
        )


def is_full() -> bool:
    """Whether it counts as full."""
    try:
        found = os.statvfs(FOLDER)
    except OSError:
        return False
    return found.f_bavail < found.f_blocks * NEARLY_FULL


def described() -> str:
    """Its size, and where it is set."""
    try:
        found = os.statvfs(FOLDER)
    except OSError:
        return str(FOLDER)
    size = found.f_blocks * found.f_frsize / 2**20
    return f"{FOLDER} has {size:,.0f} MB, {SETTING} in .env is its size"
