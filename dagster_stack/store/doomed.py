"""Runs that retention removes: nothing new may follow on one of them, and its parts go one after another."""

from collections.abc import Collection

from sqlalchemy.engine import Connection

from dagster_stack.errors import RunDoomed
from dagster_stack.store.statements import statements

#: The name of Postgres's advisory lock that retention and backups hold for as long as they work, so that one waits for
#: the other: a backup has rows first and objects after, and what goes in between would be missing in it. It is a
#: session's, in Dagster's database (also in docker/backup/backup/database.py): `SELECT pg_advisory_lock(hashtextextended('dagster_stack_backup', 0))`.
RETENTION_AND_BACKUP = "dagster_stack_backup"
#: That of the lock under which groups of runs are doomed; who adds a run to a group shares it.
DOOM = "dagster_stack_doom"

_SQL = statements(__file__)
TABLE, RUN_ENDS = _SQL["table"], _SQL["run_ends"]
CHECKS_OF_RUNS, LATEST_CHECKS = _SQL["checks_of_runs"], _SQL["latest_checks"]
LOCK, LOCK_SHARED, AMONG = _SQL["lock"], _SQL["lock_shared"], _SQL["among"]


def refuse_successors(connection: Connection, run_ids: Collection[str]) -> None:
    """Raise RunDoomed when one of these runs is doomed; until the transaction ends none of them is."""
    connection.execute(LOCK_SHARED, {"name": DOOM})
    if doomed := connection.execute(AMONG, {"runs": list(run_ids)}).scalar():
        raise RunDoomed(
            f"Run {doomed} is being removed, since it ended more than KEEP_RUNS_DAYS days ago: its outputs are no longer"
            " complete. Launch the job anew instead of executing that run again."
        )
