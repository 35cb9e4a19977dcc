"""Snapshots of jobs and of plans that no run names any more, nor a snapshot that stays."""

import re
import zlib
from collections.abc import Collection, Iterable

from sqlalchemy.engine import Connection

from dagster_stack.retention.freed import Freed
from dagster_stack.retention.session import Pace, transaction
from dagster_stack.store.statements import statements

#: The snapshot of the job of which one is a part, in its text.
PARENT = re.compile(rb'"parent_snapshot_id": "([^"]+)"')
#: Snapshots that are read, or deleted, together: one has up to some MB.
AT_ONCE = 20

_SQL = statements(__file__)
CANDIDATES, OF_RUNS, JOBS, BODIES = _SQL["candidates"], _SQL["of_runs"], _SQL["jobs"], _SQL["bodies"]
NEWEST, DELETE, DONE = _SQL["newest"], _SQL["delete"], _SQL["done"]


class Snapshots:
    """Those of a database. Their parents are read once: a snapshot never changes."""

    def __init__(self) -> None:
        self._parents: dict[str, set[str]] = {}

    def remove(self, connection: Connection, pace: Pace) -> Freed:
        """Delete what only runs named that were removed."""
        freed = Freed()
        with transaction(connection):
            candidates = {row[0] for row in connection.execute(CANDIDATES)}
        if not candidates:
            return freed
        unused, newest = self.unused(connection, candidates, pace)
        for some in in_parts(sorted(unused)):
            with transaction(connection):
                number, size = connection.execute(DELETE, {"snapshots": some, "newest": newest}).one()
            freed.add(Freed(snapshots=number, rows=number, row_bytes=int(size)))
            pace.pause()
        with transaction(connection):
            connection.execute(DONE)
        return freed

    def unused(self, connection: Connection, candidates: set[str], pace: Pace) -> tuple[set[str], int]:
        """Of candidates and their parents, those that nothing else needs; and the number of the newest run by then."""
        while True:
            # Last, since reading takes its time: a run may begin meanwhile that names one of them.
            with transaction(connection):
                newest = connection.execute(NEWEST).scalar_one()
                used = {row[0] for row in connection.execute(OF_RUNS)}
                jobs = {row[0] for row in connection.execute(JOBS)}
            if jobs <= self._parents.keys():
                break
            self._read_parents(connection, jobs, pace)
        candidates = closure(candidates, self._parents)
        return candidates - closure(used | (jobs - candidates), self._parents), newest

    def _read_parents(self, connection: Connection, jobs: set[str], pace: Pace) -> None:
        self._parents = {name: parents for name, parents in self._parents.items() if name in jobs}
        for some in in_parts(sorted(jobs - self._parents.keys())):
            with transaction(connection):
                bodies = connection.execute(BODIES, {"snapshots": some}).all()
            for name, body in bodies:
                found = PARENT.findall(zlib.decompress(bytes(body)))
                self._parents[name] = {each.decode() for each in found}
            pace.pause()


def closure(names: Collection[str], parents: dict[str, set[str]]) -> set[str]:
    """These and all their parents."""
    found, new = set[str](), set(names)
    while new:
        found |= new
        new = {parent for name in new for parent in parents.get(name, ())} - found
    return found


def in_parts(names: list[str]) -> Iterable[list[str]]:
    return (names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE))
