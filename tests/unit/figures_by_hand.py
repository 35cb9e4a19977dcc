"""What the service `metrics` gives, filled by hand: a stack at work on which all is well, and changes to it."""

from prometheus_client.core import GaugeMetricFamily, Metric

Rows = list[tuple[dict[str, str], float]]
CODE = "4f2c9a1be0d7"

WELL: dict[str, Rows] = {
    "dagster_runs": [
        ({"job": "flights", "status": "started"}, 2),
        ({"job": "nightly", "status": "queued"}, 3),
        ({"job": "nightly", "status": "started"}, 1),
    ],
    "dagster_run_queue_length": [({}, 3)],
    "dagster_run_queue_oldest_seconds": [({}, 71.3)],
    "dagster_run_state_oldest_seconds": [({"status": "queued"}, 71.3), ({"status": "started"}, 12)],
    "dagster_steps": [
        ({"queue": "dagster", "state": "waiting"}, 812),
        ({"queue": "dagster", "state": "running"}, 8),
        ({"queue": "heavy", "state": "waiting"}, 0),
        ({"queue": "heavy", "state": "running"}, 0),
    ],
    "dagster_step_oldest_wait_seconds": [({"queue": "dagster"}, 43.2), ({"queue": "heavy"}, 0)],
    "dagster_queue_messages": [
        ({"queue": "dagster", "state": "ready"}, 804),
        ({"queue": "dagster", "state": "in_flight"}, 16),
        ({"queue": "heavy", "state": "ready"}, 0),
        ({"queue": "heavy", "state": "in_flight"}, 0),
    ],
    "dagster_queue_consumers": [({"queue": "dagster"}, 8), ({"queue": "heavy"}, 1)],
    "dagster_queue_utilisation": [({"queue": "dagster"}, 1), ({"queue": "heavy"}, 0)],
    "dagster_workers": [({"queue": "dagster", "code": CODE}, 8), ({"queue": "heavy", "code": CODE}, 1)],
    "dagster_worker_processes": [({"queue": "dagster", "state": "busy"}, 8)],
    "dagster_broker_alarm": [({"kind": "memory"}, 0), ({"kind": "disk"}, 0)],
    "dagster_code": [({"code": CODE}, 1)],
    "dagster_daemon_heartbeat_age_seconds": [({"daemon": "SCHEDULER"}, 2.2), ({"daemon": "SENSOR"}, 4)],
    "dagster_database_connections": [({"state": "active"}, 3), ({"state": "idle"}, 41)],
    "dagster_database_connections_limit": [({}, 197)],
    "dagster_event_log_rows": [({}, 1234567)],
    "dagster_event_log_bytes": [({}, 1.83e9)],
    "dagster_bucket_bytes": [({"prefix": "storage"}, 3.1e9), ({"prefix": "logs"}, 2e7)],
    "dagster_bucket_objects": [({"prefix": "storage"}, 9000), ({"prefix": "logs"}, 123)],
}


def figures(without: tuple[str, ...] = (), /, **changed: Rows) -> list[Metric]:
    """The families of WELL, with some measured otherwise and some not at all."""
    return [family(name, rows) for name, rows in {**WELL, **changed}.items() if name not in without]


def family(name: str, rows: Rows) -> GaugeMetricFamily:
    made = GaugeMetricFamily(name, "By hand.", labels=list(rows[0][0]) if rows else [])
    for labels, value in rows:
        made.add_metric(list(labels.values()), value)
    return made
