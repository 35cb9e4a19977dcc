"""What Postgres says of this moment: runs, backfills, daemons, slots, its own size. Read anew for each scrape."""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy.engine import Connection

#: Statuses of runs that have not ended; those that they end in are counted as they end (history.py).
OPEN_STATUSES = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
#: The same of backfills.
OPEN_BACKFILLS = ("REQUESTED", "CANCELING", "FAILING")
#: Seconds back that failed ticks of schedules and sensors are counted.
TICKS_SECS = 3600


@dataclass(frozen=True)
class Question:
    """A query whose rows are a gauge: the value in the last column, the labels in the others."""

    name: str
    help: str
    labels: tuple[str, ...]
    statement: str

    def answer(self, connection: Connection) -> GaugeMetricFamily:
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        rows = connection.execute(
            sqlalchemy.text(self.statement),
            {"states": list(OPEN_STATUSES), "backfills": list(OPEN_BACKFILLS), "ticks": TICKS_SECS},
        )
        for *labels, value in rows:
            family.add_metric([str(label) for label in labels], float(value or 0))
        return family


#: Each is answered from an index, or from a table that stays small: none reads the event log.
QUESTIONS = (
    Question(
        "dagster_runs", "Runs that have not ended.", ("job", "status"),
        "SELECT pipeline_name, lower(status), count(*) FROM runs WHERE status = ANY(:states) GROUP BY 1, 2",
    ),
    Question(
        "dagster_run_state_oldest_seconds", "Seconds since the run that is longest in a state last changed.", ("status",),
        "SELECT lower(state), coalesce((SELECT extract(epoch FROM now() AT TIME ZONE 'utc' - min(update_timestamp))"
        " FROM runs WHERE status = state), 0) FROM unnest(CAST(:states AS text[])) AS state",
    ),
    Question(
        "dagster_run_queue_length", "Runs that wait in the run queue.", (),
        "SELECT count(*) FROM runs WHERE status = 'QUEUED'",
    ),
    Question(
        "dagster_run_queue_oldest_seconds", "Age of the run that waits longest in the run queue.", (),
        "SELECT coalesce(extract(epoch FROM now() AT TIME ZONE 'utc' - min(create_timestamp)), 0)"
        " FROM runs WHERE status = 'QUEUED'",
    ),
    Question(
        "dagster_daemon_heartbeat_age_seconds", "Seconds since a daemon's last sign of life.", ("daemon",),
        "SELECT daemon_type, extract(epoch FROM now() AT TIME ZONE 'utc' - timestamp) FROM daemon_heartbeats",
    ),
    Question(
        "dagster_ticks_failed", "Failed ticks of the last hour.", ("instigator", "type"),
        """
        SELECT job_body::json -> 'origin' ->> 'job_name', lower(job_type), sum((
            SELECT count(*) FROM job_ticks WHERE job_ticks.selector_id = jobs.selector_id AND job_ticks.status = 'FAILURE'
                AND job_ticks.timestamp > now() AT TIME ZONE 'utc' - make_interval(secs => :ticks)
        )) FROM jobs GROUP BY 1, 2
        """,
    ),
    Question(
        "dagster_backfill_runs", "Runs of backfills under way.", ("job", "status"),
        "SELECT coalesce(actions.job_name, 'assets'), lower(runs.status), count(*) FROM bulk_actions AS actions"
        " JOIN runs ON runs.backfill_id = actions.key WHERE actions.status = ANY(:backfills) GROUP BY 1, 2",
    ),
    Question(
        "dagster_backfills", "Backfills under way.", ("job",),
        "SELECT coalesce(job_name, 'assets'), count(*) FROM bulk_actions"
        " WHERE status = ANY(:backfills) GROUP BY 1",
    ),
    Question(
        # What their runs are to become; a backfill of assets names none.
        "dagster_backfill_partitions", "Partitions of backfills under way.", ("job",),
        "SELECT job_name, sum(json_array_length(body::json -> 'partition_names')) FROM bulk_actions"
        " WHERE status = ANY(:backfills) AND json_typeof(body::json -> 'partition_names') = 'array'"
        " AND job_name IS NOT NULL GROUP BY 1",
    ),
    Question(
        "dagster_concurrency_slots", "Slots of a pool, by whether they are taken.", ("pool", "state"),
        "SELECT concurrency_key, CASE WHEN run_id IS NULL THEN 'free' ELSE 'taken' END, count(*)"
        " FROM concurrency_slots WHERE NOT deleted GROUP BY 1, 2",
    ),
    Question(
        "dagster_concurrency_waiting", "Steps that wait for a slot of a pool.", ("pool",),
        "SELECT concurrency_key, count(*) FROM pending_steps WHERE assigned_timestamp IS NULL GROUP BY 1",
    ),
    Question(
        # The first is as of the last ANALYZE, the second since the server's last crash.
        "dagster_event_log_rows", "Rows of the event log, as Postgres estimates them.", (),
        "SELECT greatest(reltuples, pg_stat_get_live_tuples(oid), 0) FROM pg_class WHERE oid = 'event_logs'::regclass",
    ),
    Question(
        "dagster_event_log_bytes", "Bytes of the event log with its indexes.", (),
        "SELECT pg_total_relation_size('event_logs')",
    ),
    Question(
        "dagster_store_fences", "Whether the object store keeps conditions on writes, so that late ones are refused.", ("write",),
        "SELECT kept.key, (kept.value = 'true')::int FROM dagster_stack_facts, jsonb_each(value -> 'kept') AS kept"
        " WHERE name = 's3.conditions'",
    ),
    Question(
        "dagster_database_connections", "Connections to the database.", ("state",),
        "SELECT coalesce(state, 'other'), count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1",
    ),
    Question(
        "dagster_database_connections_limit", "Connections that the server has to give.", (),
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int",
    ),
)  # fmt: skip


def figures(connection: Connection) -> Iterator[GaugeMetricFamily]:
    """All of them. Raises SQLAlchemy's errors."""
    return (question.answer(connection) for question in QUESTIONS)
