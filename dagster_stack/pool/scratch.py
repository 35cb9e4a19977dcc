"""A worker container's scratch space, `/tmp`: what takes how much of it, and room for the next step.

Each step has a folder of its own there that goes with it. What steps leave beside those folders stays while half of the
space is free: caches may be meant to be kept. Then the oldest goes, but for what a process has open.
"""

import logging
import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_stack.errors import NoRoom
from dagster_stack.services.health import HEARTBEAT_FILE
from dagster_stack.step import shared_memory, step_folder
from dagster_stack.store import error_chains

if TYPE_CHECKING:
    from dagster_stack.store.leases import Work

logger = logging.getLogger(__name__)

#: Names the folder. Set in containers alone: elsewhere `/tmp` belongs to the whole machine.
VARIABLE = "DAGSTER_STACK_SCRATCH"
#: The setting that people change.
SETTING = "WORKER_TMP"
#: Parts of the space that are to be free before a step: below the first leftovers go, below the second it waits.
ENOUGH, LEAST = 0.5, 0.1
#: Further part that is used before leftovers are looked at again.
CHANGE = 0.05
#: What of a container's scratch space is the platform's.
OWN = {HEARTBEAT_FILE.name, "dagster"}
PRINTED = "compute-logs"
#: Bytes below which leftovers are not worth their removal.
SMALL = 1 << 20
#: How many of the largest entries an error names.
NAMED = 5
FULL = re.compile(r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A file, or a folder with all that is in it."""

    path: Path
    size: int
    #: When any of it was changed last.
    changed_at: float

    @staticmethod
    def of(path: Path) -> "Entry":
        size, changed = 0, 0.0
        for found in _below(path):
            size, changed = size + found.st_blocks * 512, max(changed, found.st_mtime, found.st_ctime)
        return Entry(path, size, changed)


class Scratch:
    """The scratch space of this process's container."""

    def __init__(
        self,
        folder: Path,
        usage: Callable[[Path], os.statvfs_result] = os.statvfs,
        running: Callable[[], list[Path]] | None = None,
    ) -> None:
        self.folder = folder
        self._usage = usage
        self._running = running or running_steps
        #: What was free after the last look: below that there is something new to remove, else a look costs a step time.
        self._left = 1.0

    @property
    def free(self) -> float:
        """The part that is free, of bytes or of files, whichever is scarcer."""
        found = self._usage(self.folder)
        files = found.f_favail / found.f_files if found.f_files else 1.0
        return min(found.f_bavail / found.f_blocks, files)

    @property
    def has_room(self) -> bool:
        """Whether a step may begin, after what earlier ones have left is removed if that is needed."""
        free = self.free
        if free >= ENOUGH:
            self._left = 1.0
            return True
        if free < max(LEAST, self._left - CHANGE):
            self._clear()
            free = self.free
            self._left = free
        return free >= LEAST

    def describe(self) -> str:
        """How much is free, and what takes the most."""
        found = self._usage(self.folder)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        owners = list(self._owners())
        removed = total - free - sum(size for _, size in owners)
        if removed > SMALL:
            owners.append(("files that are removed, and that a process has open,", removed))
        owners.sort(key=lambda owner: -owner[1])
        named = [f"{name} {megabytes(size)}" for name, size in owners[:NAMED] if size]
        return (
            f"{self.folder} of this worker has {megabytes(total)} ({SETTING} in .env; it counts as the container's"
            f" memory), of which {megabytes(free)} are free: {', '.join(named) or 'nothing is in it'}."
        )

    def _owners(self) -> Iterator[tuple[str, int]]:
        mine = f"{os.getpid()}-"
        for entry in self.folder.iterdir():
            if entry == step_folder.parent():
                for each in entry.iterdir():
                    whose = (
                        "this step's folder"
                        if each.name.startswith(mine)
                        else f"another step's folder {each}"
                    )
                    yield whose, Entry.of(each).size
            elif entry.name == PRINTED:
                yield "what steps print", Entry.of(entry).size
            elif entry.name not in OWN:
                yield f"{entry}, which a step made,", Entry.of(entry).size

    def _clear(self) -> None:
        """Remove leftovers, the oldest first, until enough is free; whole ones, since half a cache is a broken one."""
        others = [folder for folder in self._running() if not folder.name.startswith(f"{os.getpid()}-")]
        before = min(map(born_at, others), default=float("inf"))
        entries = sorted(self._leftovers(), key=lambda entry: entry.changed_at)
        opened = open_files()
        large = [entry for entry in entries if entry.size >= SMALL]
        small = [entry for entry in entries if entry.size < SMALL]
        if sum(entry.size for entry in small) < SMALL:
            small = []
        for entry in [*large, *small]:
            if self.free >= ENOUGH:
                break
            # Files that another step of this container may have made stay while that step runs.
            if entry.changed_at < before and not any(path.is_relative_to(entry.path) for path in opened):
                if not removed(entry.path):
                    continue
                logger.warning(
                    "%s is removed, which earlier steps have left in scratch space: %s",
                    entry.path,
                    megabytes(entry.size),
                    extra={"action": "scratch.removed"},
                )

    def _leftovers(self) -> Iterator[Entry]:
        for path in self.folder.iterdir():
            if path.name == PRINTED:
                # Those of processes that were killed: who prints has its files open.
                yield from (Entry.of(file) for file in path.rglob("*") if not file.is_dir())
            elif path.name not in OWN and path != step_folder.parent():
                yield Entry.of(path)


@cache
def scratch() -> Scratch | None:
    """That of this process; None where it has none of its own."""
    folder = os.environ.get(VARIABLE)
    return Scratch(Path(folder)) if folder else None


#: What this process has said that there is no room for.
_told: "deque[Work]" = deque(maxlen=1000)


def has_room() -> bool:
    """Whether user code may begin in this process."""
    found = scratch()
    return found is None or found.has_room


def see_to_room(work: "Work", holder: str, tell: Callable[[str], object]) -> None:
    """Raises NoRoom when user code may not begin in this process, told once: the message of its work comes again, to
    this worker or another one."""
    found = scratch()
    if found is None or found.has_room:
        return
    reason = f"{holder} has no room for it, and it waits for that or for another worker. {found.describe()}"
    if work not in _told:
        _told.append(work)
        logger.warning("no room for %s: %s", work, found.describe(), extra={"action": "scratch.full"})
        tell(f"{work} is delayed: {reason}")
    raise NoRoom(reason)


def explain(text: str) -> str | None:
    """The text that is added to an error which says that a disk is full."""
    found = scratch()
    if not found or not FULL.search(text):
        return None
    if str(shared_memory.FOLDER) in text or shared_memory.is_full():
        return f"{shared_memory.described()}."
    # Another disk may be full, as that of a store.
    return found.describe() if "[Errno" in text or found.free < LEAST else None


def use_in_errors() -> None:
    """Let errors of this process say what is full."""
    if explain not in error_chains.explanations:
        error_chains.explanations.append(explain)


def running_steps() -> list[Path]:
    """The folders of the steps that run in this container."""
    step_folder.remove_dead()
    with suppress(FileNotFoundError):
        return list(step_folder.parent().iterdir())
    return []


def born_at(path: Path) -> float:
    """When a file or folder was made; 0 where the system does not say, or it is gone."""
    command = ["stat", "--format", "%W", str(path)]
    found = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout
    return float(found.strip() or 0)


def open_files() -> set[Path]:
    """The paths of all that processes here have open, mapped, or for their working directory."""
    found: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.add((process / "cwd").readlink())
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    found.add(descriptor.readlink())
            for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
                found.update(map(Path, line.split(maxsplit=5)[5:]))
    return found


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _below(path: Path) -> Iterator[os.stat_result]:
    """What the file system says of a path and of all below it; what goes meanwhile is left out."""
    waiting = [path]
    while waiting:
        one = waiting.pop()
        with suppress(OSError):
            yield one.lstat()
            if one.is_dir() and not one.is_symlink():
                waiting.extend(one.iterdir())


def removed(path: Path) -> bool:
    """Remove a file, or a folder with all that is in it; whether it is gone."""
    if path.is_dir() and not path.is_symlink():
        step_folder.remove(path)
    else:
        with suppress(OSError):
            path.unlink()
    return not os.path.lexists(path)
