"""What was executed, as the steps themselves left it in a folder of this host: see `drill_jobs.py`."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Mark(NamedTuple):
    """The begin or the end of one execution of a step; or a sign of life of a tool that it started."""

    run_id: str
    what: str
    step: str
    host: str
    pid: int
    at: float


def read(folder: Path, run_ids: Iterable[str]) -> list[Mark]:
    """The marks of runs, in the order in which each run's were made."""
    return [mark for run_id in run_ids for mark in _of(folder, run_id)]


def _of(folder: Path, run_id: str) -> list[Mark]:
    file = folder / run_id
    if not file.exists():
        return []
    lines = file.read_text().splitlines()
    return [
        Mark(run_id, what, step, host, int(pid), float(at))
        for what, step, host, pid, at in (line.split() for line in lines)
    ]


def under_way(marks: Iterable[Mark]) -> bool:
    """Whether an execution has begun and not ended."""
    kinds = [mark.what for mark in marks]
    return kinds.count("end") < kinds.count("begin")
