"""What the storages take by themselves: the same bytes as a step's, over connections that stand."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from dagster import DagsterInstance
from psycopg2.extras import execute_values  # type: ignore[import-untyped]

from dagster_stack.objects.client import s3_client
from dagster_stack.settings import Settings

REPEATS = 200
#: Columns of an event but its id, which the database gives.
COLUMNS = "run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition"
#: A table like Dagster's, with all its indexes, that is there for the time of the measurement.
TABLE = "dagster_stack_bench"
#: A step of the chain that neither begins nor ends it.
STEP = "step_10"


def measure(run_id: str) -> dict[str, float]:
    """Median seconds of one operation each; the events are those that a step of this run wrote."""
    return {**database(run_id), **store()}


def database(run_id: str) -> dict[str, float]:
    with DagsterInstance.get() as instance:
        url = instance.event_log_storage.postgres_url  # type: ignore[attr-defined]
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute(
            f"SELECT {COLUMNS} FROM event_logs WHERE run_id = %s AND step_key = %s", (run_id, STEP)
        )
        rows = cursor.fetchall()
        cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
        cursor.execute(f"CREATE TABLE {TABLE} (LIKE event_logs INCLUDING ALL)")
        half = max(1, len(rows) // 2)
        return {
            "connect": timed(lambda: psycopg2.connect(url).close(), REPEATS // 10),
            "write": timed(
                lambda: execute_values(cursor, f"INSERT INTO {TABLE} ({COLUMNS}) VALUES %s", rows[:half])
            ),
            "read": timed(lambda: cursor.execute("SELECT 1")),
            "events": float(len(rows)),
            "bytes": float(sum(len(row[1]) for row in rows)),
        }
    finally:
        connection.cursor().execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.close()


def store() -> dict[str, float]:
    settings = Settings.from_environment()
    assert settings.s3
    client: Any = s3_client(settings.s3.endpoint_url)
    place = {"Bucket": settings.s3.bucket, "Key": f"{settings.data_prefix}/bench"}

    def get() -> None:
        client.get_object(**place)["Body"].read()

    try:
        return {"put": timed(lambda: client.put_object(**place, Body=b"12345")), "get": timed(get)}
    finally:
        client.delete_object(**place)


def timed(act: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median of as many calls, after one that does not count."""
    act()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
