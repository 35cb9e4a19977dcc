"""What tells only how a step was executed: it goes a while after its run has ended, in the order of the runs' ends."""

from collections.abc import Collection, Iterator

from sqlalchemy.engine import Connection

from dagster_stack.retention.freed import Freed
from dagster_stack.retention.session import Pace, transaction
from dagster_stack.store.facts import Facts
from dagster_stack.store.statements import nested

#: Kinds of events that nobody asks for once a run has ended. Of those that Dagster's page on database tuning names, these
#: stay: STEP_OUTPUT and RESOURCE_INIT_FAILURE, which a re-execution from failure reads; ASSET_MATERIALIZATION_PLANNED, by
#: which partitions count as failed; PIPELINE_ENQUEUED, _STARTING and _CANCELING, by which Dagit shows when a run was what.
#: And LOGS_CAPTURED, by which it finds what a step printed.
KINDS = (
    "ENGINE_EVENT",
    "HANDLED_OUTPUT",
    "LOADED_INPUT",
    "RESOURCE_INIT_STARTED",
    "RESOURCE_INIT_SUCCESS",
    "STEP_INPUT",
    "STEP_WORKER_STARTED",
    "STEP_WORKER_STARTING",
)
#: Runs that are looked at together, and rows that one statement deletes at most.
RUNS_AT_ONCE, ROWS_AT_ONCE = 100, 500
#: The fact that says which runs were done: the end and the number of the last one.
DONE = "retention.details"

_SQL = nested(__file__)
ENDED, SIZES, DELETE = _SQL["ended"], _SQL["sizes"], _SQL["delete"]

#: An end of a run, in seconds since 1970, and the number of its row.
Place = tuple[float, int]
BEGIN: Place = (0.0, 0)


def ended_runs(
    connection: Connection, before: float, after: Place = BEGIN, limit: int = RUNS_AT_ONCE
) -> Iterator[tuple[list[str], Place]]:
    """Runs that ended before a moment, some at a time, in the order of their ends, each with the place of the last."""
    while True:
        values = {"before": before, "after": after[0], "after_id": after[1], "limit": limit}
        with transaction(connection):
            rows = connection.execute(ENDED, values).all()
        if not rows:
            return
        after = (rows[-1][1], rows[-1][2])
        yield [row[0] for row in rows], after


def remove_details(connection: Connection, facts: Facts, before: float, pace: Pace) -> Iterator[Freed]:
    """Delete the details of runs that ended before a moment; yields what each batch has freed.

    Where it stopped it goes on: what was deleted twice is deleted all the same.
    """
    for runs, place in ended_runs(connection, before, tuple(facts.read(DONE) or BEGIN)):
        freed = Freed()
        while True:
            values = {"runs": runs, "kinds": list(KINDS), "limit": ROWS_AT_ONCE}
            with transaction(connection):
                rows, size = connection.execute(DELETE, values).one()
            freed.add(Freed(rows=rows, row_bytes=int(size)))
            pace.pause()
            if rows < ROWS_AT_ONCE:
                break
        facts.note(DONE, place)
        yield freed


def count_details(
    connection: Connection, facts: Facts, before: float, pace: Pace, but: Collection[str] = ()
) -> Iterator[Freed]:
    """The same without some runs, and nothing is deleted."""
    for runs, _ in ended_runs(connection, before, tuple(facts.read(DONE) or BEGIN)):
        values = {"runs": [run for run in runs if run not in but], "kinds": list(KINDS)}
        with transaction(connection):
            rows, size = connection.execute(SIZES, values).one()
        pace.pause()
        yield Freed(rows=rows, row_bytes=int(size))
