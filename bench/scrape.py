"""What a scrape of the service `metrics` costs the database when its event log is long."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import sqlalchemy
from psycopg2 import extensions  # type: ignore[import-untyped]
from sqlalchemy.engine import Connection, Engine

from bench.progress import say
from dagster_stack.monitoring.database import database
from dagster_stack.monitoring.metrics import Figures

#: Events in the log, in runs of so many; and runs that have not ended.
EVENTS, EVENTS_OF_A_RUN, OPEN_RUNS = 1_000_000, 500, 20
#: Scrapes, and events between two of them: 100 a second for Prometheus's 5 s.
SCRAPES, EVENTS_BETWEEN = 30, 500
#: Bytes of an event's text: the median of those of a chain of no-ops is some 900.
EVENT_BYTES = 900
#: Beside the stack's own tables, with all their indexes, for the time of the measurement.
SCHEMA = "dagster_stack_bench"
TABLES = ("runs", "run_tags", "event_logs", "bulk_actions", "daemon_heartbeats", "jobs", "job_ticks",
          "concurrency_slots", "pending_steps")  # fmt: skip
#: In their order for one step: an eighth of the events is of each kind.
KINDS = ("STEP_WORKER_STARTING", "STEP_WORKER_STARTED", "STEP_START", "LOADED_INPUT", "STEP_OUTPUT",
         "HANDLED_OUTPUT", "STEP_SUCCESS", "ENGINE_EVENT")  # fmt: skip
FILL_RUNS = """
    INSERT INTO runs (run_id, pipeline_name, status, run_body, create_timestamp, update_timestamp)
    SELECT 'run-' || number, 'job-' || number % 20, CASE WHEN number < :open THEN 'STARTED' ELSE 'SUCCESS' END, '{}',
        now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc'
    FROM generate_series(0, :runs - 1) AS number
"""
#: The last events are of the open runs.
FILL_EVENTS = """
    INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
    SELECT 'run-' || (:events - number) / :of_a_run, repeat('x', :bytes),
        (CAST(:kinds AS text[]))[number % 8 + 1], now() AT TIME ZONE 'utc', 'step_' || number / 8 % 60
    FROM generate_series(CAST(:first AS bigint), :last) AS number
"""


def measure() -> dict[str, Any]:
    """Seconds of database time of the first scrape, and of later ones while the log grows."""
    with long_log() as (engine, writer):
        figures = Figures(engine)
        first, *later = [database_seconds(figures, writer, number) for number in range(SCRAPES + 1)]
        return {"events": EVENTS, "first": first, "median": median(later), "highest": max(later)}


def database_seconds(figures: Figures, writer: Connection, number: int) -> float:
    """Of one scrape, as it says itself, after the log has grown."""
    last = EVENTS - 1
    fill(writer, last - EVENTS_BETWEEN, last)
    say(f"a scrape with {EVENTS:,} events · {number} of {SCRAPES}")
    found = {metric.name: metric for metric in figures.collect()}
    return float(found["dagster_metrics_database_seconds"].samples[0].value)


@contextmanager
def long_log() -> Iterator[tuple[Engine, Connection]]:
    """An engine that sees the long log in place of the stack's own, and a connection that writes to it."""
    engine = database()
    # A million rows are written for longer than the metrics would ever wait.
    extensions.set_wait_callback(None)
    with sqlalchemy.create_engine(engine.url, isolation_level="AUTOCOMMIT").connect() as writer:
        writer.execute(sqlalchemy.text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        writer.execute(sqlalchemy.text(f"CREATE SCHEMA {SCHEMA}"))
        try:
            for table in TABLES:
                writer.execute(
                    sqlalchemy.text(f"CREATE TABLE {SCHEMA}.{table} (LIKE public.{table} INCLUDING ALL)")
                )
            writer.execute(sqlalchemy.text(f"SET search_path = {SCHEMA}"))
            say(f"a log of {EVENTS:,} events is made")
            values = {"runs": EVENTS // EVENTS_OF_A_RUN, "open": OPEN_RUNS}
            writer.execute(sqlalchemy.text(FILL_RUNS), values)
            fill(writer, 0, EVENTS - 1)
            writer.execute(sqlalchemy.text("ANALYZE"))
            yield with_schema(engine), writer
        finally:
            writer.execute(sqlalchemy.text(f"DROP SCHEMA {SCHEMA} CASCADE"))


def fill(writer: Connection, first: int, last: int) -> None:
    writer.execute(
        sqlalchemy.text(FILL_EVENTS),
        {
            "events": EVENTS, "of_a_run": EVENTS_OF_A_RUN, "bytes": EVENT_BYTES, "kinds": list(KINDS),
            "first": first, "last": last,
        },
    )  # fmt: skip


def with_schema(engine: Engine) -> Engine:
    """The same engine, whose connections look into the schema first; of what is not there, they see the stack's own."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def look_there(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET search_path = {SCHEMA}, public")
        connection.commit()

    return engine
