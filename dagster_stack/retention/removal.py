"""Doomed runs are removed: first their objects, then their rows, some runs in one transaction, then their snapshots.

Whatever happens in between, the next pass finds them doomed and does it again.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy.engine import Connection

from dagster_stack.retention.freed import Freed
from dagster_stack.retention.outputs import Outputs
from dagster_stack.retention.session import Pace, transaction
from dagster_stack.store.statements import nested

#: Kinds of events of which the latest of each asset and partition stays.
KEPT = (
    "ASSET_MATERIALIZATION",
    "ASSET_MATERIALIZATION_PLANNED",
    "ASSET_OBSERVATION",
    "ASSET_FAILED_TO_MATERIALIZE",
    "ASSET_WIPED",
    "ASSET_HEALTH_CHANGED",
    "FRESHNESS_STATE_CHANGE",
)
#: Runs whose rows go in one transaction, and about how many rows: a run with more goes alone.
RUNS_AT_ONCE, ROWS_AT_ONCE = 10, 500
#: Seconds after which a removed run is looked at again, and after which it is forgotten if nothing of it is left.
AGAIN_SECS, FORGET_SECS = 24 * 3600, 7 * 24 * 3600
#: Those that are looked at again in one pass.
MOST_AGAIN = 2000

_SQL = nested(__file__)
DOOMED, EVENTS_OF, KEPT_EVENTS = _SQL["doomed"], _SQL["events_of"], _SQL["kept_events"]
COUNT = [_SQL[f"count_{name}"] for name in ("checks", "events", "runs")]
#: In this order: which runs stay, empty, depends on their events, and which events stay on the checks that do.
DELETE = [_SQL[f"delete_{name}"] for name in ("tags", "runs", "checks", "events")]
DELETE_CLAIMS, DELETE_RUNS, MARK = _SQL["delete_claims"], _SQL["delete_runs"], _SQL["mark"]
REMAINS, FORGET = _SQL["remains"], _SQL["forget"]
DELETE_BACKFILLS, COUNT_BACKFILLS = _SQL["delete_backfills"], _SQL["count_backfills"]


class Removal:
    """The removal of doomed runs from the database and the bucket."""

    def __init__(self, connection: Connection, outputs: Outputs | None, pace: Pace) -> None:
        self._connection, self._outputs, self._pace = connection, outputs, pace

    def of_doomed(self) -> Iterator[Freed]:
        """Remove all that are doomed; yields what each batch has freed."""
        while runs := self._doomed():
            for some in self._batches(runs):
                yield self._remove(some)

    def of_remains(self) -> Iterator[Freed]:
        """Remove what is left of runs that were removed, where something newer is the latest now."""
        with transaction(self._connection):
            values = {"secs": AGAIN_SECS, "limit": MOST_AGAIN}
            runs = [row[0] for row in self._connection.execute(REMAINS, values)]
        for first in range(0, len(runs), RUNS_AT_ONCE):
            some = runs[first : first + RUNS_AT_ONCE]
            yield self._remove(some)
            with transaction(self._connection):
                self._connection.execute(FORGET, {"runs": some, "secs": FORGET_SECS})

    def of_backfills(self, before: float) -> Iterator[Freed]:
        """Remove backfills that ended before a moment and have no run any more."""
        while True:
            with transaction(self._connection):
                values = {"before": before, "limit": RUNS_AT_ONCE}
                number, size = self._connection.execute(DELETE_BACKFILLS, values).one()
            if not number:
                return
            yield Freed(backfills=number, rows=number, row_bytes=int(size))
            self._pace.pause()

    def count(self, runs: Sequence[str]) -> Iterator[Freed]:
        """What would go with these runs."""
        for some in self._batches(runs):
            freed = Freed()
            with transaction(self._connection):
                for statement in COUNT:
                    rows, size = self._connection.execute(statement, self._values(some)).one()
                    freed.add(Freed(rows=rows, row_bytes=int(size)))
                freed.runs = rows
            if self._outputs:
                freed.add(self._outputs.count(some, self._kept(some)))
            yield freed
            self._pace.pause()

    def count_backfills(self, before: float) -> Freed:
        with transaction(self._connection):
            number, size = self._connection.execute(COUNT_BACKFILLS, {"before": before}).one()
        return Freed(backfills=number, rows=number, row_bytes=int(size))

    def _doomed(self) -> list[str]:
        with transaction(self._connection):
            return [row[0] for row in self._connection.execute(DOOMED, {"limit": 10 * RUNS_AT_ONCE})]

    def _batches(self, runs: Sequence[str]) -> Iterator[list[str]]:
        """Runs in parts of few rows."""
        with transaction(self._connection):
            sizes = dict(self._connection.execute(EVENTS_OF, {"runs": list(runs)}).tuples().all())
        batch: list[str] = []
        rows = 0
        for run in runs:
            size = sizes.get(run, 0)
            if batch and (rows + size > ROWS_AT_ONCE or len(batch) == RUNS_AT_ONCE):
                yield batch
                batch, rows = [], 0
            batch.append(run)
            rows += size
        if batch:
            yield batch

    def _remove(self, runs: list[str]) -> Freed:
        freed = self._outputs.remove(runs, self._kept(runs)) if self._outputs else Freed()
        freed.add(self._remove_rows(runs))
        self._pace.pause()
        return freed

    def _remove_rows(self, runs: list[str]) -> Freed:
        """A run is there with all of its rows, or it is not there."""
        freed, values = Freed(), self._values(runs)
        with transaction(self._connection) as connection:
            for statement in DELETE:
                rows, size = connection.execute(statement, values).one()
                runs_of_them = rows if statement is DELETE_RUNS else 0
                freed.add(Freed(runs=runs_of_them, rows=rows, row_bytes=int(size)))
            connection.execute(DELETE_CLAIMS, values)
            connection.execute(MARK, values)
        return freed

    def _kept(self, runs: Sequence[str]) -> list[tuple[str, str]]:
        """The events that stay of these runs, as texts."""
        with transaction(self._connection):
            rows = self._connection.execute(KEPT_EVENTS, self._values(runs))
            return [(row[0], row[1]) for row in rows]

    @staticmethod
    def _values(runs: Sequence[str]) -> dict[str, list[str]]:
        return {"runs": list(runs), "kept": list(KEPT)}
