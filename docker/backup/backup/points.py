"""The moments to which the stack can be restored, and the restores that were: lines of the repository's folder `points`.

A point is a mark in Postgres' journal whose journal is in the repository, and a copy of the bucket that was made after it. So
all objects that the event log names at that point are in the copy.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backup.errors import Failure
from backup.settings import REPOSITORY

FOLDER = REPOSITORY / "points"


@dataclass(frozen=True)
class Point:
    """`at` in seconds since 1970, by Postgres' clock. `stamp` names the copy of the bucket. `wal` is the last file of the
    journal that it needs, and begins with its timeline. Of an outside Postgres `dump` is its file, and there is no journal."""

    at: float
    stamp: str
    wal: str = ""
    dump: str = ""

    @property
    def timeline(self) -> int:
        return int(self.wal[:8], 16) if self.wal else 0


@dataclass(frozen=True)
class Restore:
    """At `at` the stack went back to `to`: what was between the two is another future, which later restores leave out."""

    at: float
    to: float


def stamp(at: float) -> str:
    """A moment as folders are named after it: they sort by time."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def add(entry: Point | Restore, folder: Path = FOLDER) -> None:
    """Write an entry down, at once on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(entry)) + "\n"
    with (folder / f"{stamp(entry.at)[:8]}.jsonl").open("a+b") as file:
        # Behind a line that a kill has cut.
        if file.tell() and not ends_a_line(file.name):
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def ends_a_line(name: str) -> bool:
    with Path(name).open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def read(folder: Path = FOLDER) -> tuple[list[Point], list[Restore]]:
    """All entries, the oldest first; a line that was cut by a kill is none."""
    points, restores = [], []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "to" in entry:
                restores.append(Restore(**entry))
            else:
                points.append(Point(**entry))
    return sorted(points, key=lambda point: point.at), sorted(restores, key=lambda restore: restore.at)


def forget(keep_days: int, folder: Path = FOLDER) -> None:
    """Remove the entries of days that are over."""
    oldest = datetime.now(UTC) - timedelta(days=keep_days + 1)
    for file in folder.glob("*.jsonl"):
        if file.stem < oldest.strftime("%Y%m%d"):
            file.unlink()


def abandoned(at: float, restores: Iterable[Restore], until: float) -> bool:
    """Whether what happened then is not in the past of `until`, since a restore went back behind it."""
    return any(restore.to < at < restore.at <= until for restore in restores)


def choose(points: Sequence[Point], to: float | None) -> Point:
    """The first point that has all that was at `to`, or the newest one; of dumps the last one before it.

    Raises Failure that says what there is.
    """
    if not points:
        raise Failure(
            "There is no point to restore to: no backup was completed in this repository. `make backup` makes one."
        )
    if to is None:
        return points[-1]
    if points[-1].dump:
        if before := [point for point in points if point.at <= to]:
            return before[-1]
        raise Failure(f"TO={shown(to)} is before the oldest dump, {shown(points[0].at)}: name a later TO.")
    found = next((point for point in points if point.at >= to), None)
    if found is None:
        raise Failure(
            f"TO={shown(to)} is after the newest point, {shown(points[-1].at)}: without TO that one is restored. What came"
            " after it is lost with the volumes, or still in them."
        )
    return found


def shown(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
