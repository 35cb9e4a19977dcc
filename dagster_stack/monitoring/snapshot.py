"""The stack at one moment, as `make status`, its JSON and the page of the service `metrics` show it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from prometheus_client.core import Metric

from dagster_stack.errors import PrometheusUnreachable
from dagster_stack.monitoring.counters import NO_QUEUE
from dagster_stack.monitoring.formatting import counted, number, seconds
from dagster_stack.monitoring.prometheus import Alert, Prometheus
from dagster_stack.monitoring.sample_index import Samples

#: Seconds without a sign of life after which a daemon counts as silent; Prometheus's alert waits a minute more.
DAEMON_SILENCE_SECS = 180
#: The part of Postgres's connections beyond which it is said.
FULL = 0.9

#: Of a store that does not keep conditions on writes.
UNFENCED = "The object store can't refuse late writes: a worker that was paused may overwrite an output (docs/reliability.md)."

#: Whose error it is, by the library that raises it.
STORES = {
    "sqlalchemy": "Postgres", "psycopg2": "Postgres", "requests": "RabbitMQ's management", "kombu": "RabbitMQ",
    "amqp": "RabbitMQ", "botocore": "The object store",
}  # fmt: skip


class Verdict(StrEnum):
    """Is all well? UNKNOWN while a store does not answer."""

    WELL = "well"
    UNWELL = "unwell"
    UNKNOWN = "unknown"


class Alerting(StrEnum):
    """Whether Prometheus was there to be asked."""

    OFF = "off"
    ON = "on"
    AWAY = "away"


@dataclass(frozen=True)
class Alerts:
    """What Prometheus says: nothing while it is switched off, or away for the reason in `complaint`."""

    state: Alerting = Alerting.OFF
    firing: tuple[Alert, ...] = ()
    complaint: str = ""

    @staticmethod
    def ask(prometheus: Prometheus | None) -> "Alerts":
        if prometheus is None:
            return Alerts()
        try:
            return Alerts(Alerting.ON, prometheus.firing())
        except PrometheusUnreachable as error:
            return Alerts(Alerting.AWAY, complaint=str(error))


@dataclass(frozen=True)
class Queue:
    """One queue. Messages are the broker's, steps those of runs in progress; utilisation is from 0 to 1; `workers`
    counts by code. What nobody measures is None."""

    name: str
    waiting: float | None
    running: float | None
    oldest_wait_seconds: float | None
    ready: float | None
    in_flight: float | None
    consumers: float | None
    utilisation: float | None
    processes: dict[str, float] | None
    workers: dict[str, float] | None

    @property
    def oldest(self) -> str:
        """The oldest wait in words."""
        return "-" if self.waiting == 0 else seconds(self.oldest_wait_seconds)

    @property
    def problem(self) -> str | None:
        # A worker that lost the broker while all its processes work subscribes when one is free.
        if self.ready and self.consumers == 0 and not (self.processes or {}).get("busy"):
            return f"No worker on the queue {self.name}, and {counted(self.ready, 'message')} in it: `make workers`."
        return None


@dataclass(frozen=True)
class Scaled:
    """A service whose number of workers follows the work: how many run and should, within which limits, and why."""

    service: str
    running: float | None
    wish: float | None
    least: float | None
    most: float | None
    reason: str | None


@dataclass(frozen=True)
class Runs:
    """Runs that have not ended, by status and by job; ages in seconds."""

    by_status: dict[str, float] | None
    by_job: dict[str, float] | None
    oldest_seconds_by_status: dict[str, float] | None
    queue_length: float | None
    queue_oldest_seconds: float | None


@dataclass(frozen=True)
class Stores:
    """What Postgres and the bucket hold; of the broker's alarms, by what is short, 1 is one that is on."""

    database_connections: float | None
    database_connections_limit: float | None
    event_log_rows: float | None
    event_log_bytes: float | None
    bucket_bytes: float | None
    bucket_objects: float | None
    broker_alarms: dict[str, float] | None
    #: Whether the object store refuses late writes, by kind of write: 1 is yes.
    store_fences: dict[str, float] | None = None
    #: Of the last pass of retention: rows, bytes in Postgres and in the bucket, seconds since it ended.
    retention_rows: float | None = None
    retention_bytes: float | None = None
    retention_age_seconds: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """All of it. `at` is in seconds since 1970; `away` names the store that did not answer, for which nothing else
    than alerts is known; `daemons` are seconds since each one's last sign of life."""

    at: float
    runs: Runs
    queues: tuple[Queue, ...]
    code: str | None
    daemons: dict[str, float] | None
    #: Of several daemons the one that leads, with the seconds since its last sign of life.
    leader: dict[str, float] | None
    stores: Stores
    alerts: Alerts
    away: str | None = None
    #: Empty while `make autoscale` does not run.
    autoscale: tuple[Scaled, ...] = ()
    #: Workers that answer, by further host; None on one host.
    hosts: dict[str, float] | None = None
    #: Those that `make autoscale` has there; None while it does not run.
    autoscale_hosts: dict[str, float] | None = None

    @staticmethod
    def of(families: Iterable[Metric], at: float, alerts: Alerts, away: str | None = None) -> "Snapshot":
        """From a scrape's families; any may be missing."""
        found = Samples(families)
        return Snapshot(
            at=at,
            runs=Runs(
                by_status=found.by("dagster_runs", "status"),
                by_job=found.by("dagster_runs", "job"),
                oldest_seconds_by_status=found.by("dagster_run_state_oldest_seconds", "status"),
                queue_length=found.value("dagster_run_queue_length"),
                queue_oldest_seconds=found.value("dagster_run_queue_oldest_seconds"),
            ),
            queues=tuple(read_queue(found, name) for name in queue_names(found)),
            code=next(iter(found.labels("dagster_code", "code")), None),
            daemons=found.by("dagster_daemon_heartbeat_age_seconds", "daemon"),
            leader=found.by("dagster_daemon_leader_age_seconds", "leader"),
            stores=Stores(
                database_connections=found.total("dagster_database_connections"),
                database_connections_limit=found.value("dagster_database_connections_limit"),
                event_log_rows=found.value("dagster_event_log_rows"),
                event_log_bytes=found.value("dagster_event_log_bytes"),
                bucket_bytes=found.total("dagster_bucket_bytes"),
                bucket_objects=found.total("dagster_bucket_objects"),
                broker_alarms=found.by("dagster_broker_alarm", "kind"),
                store_fences=found.by("dagster_store_fences", "write"),
                retention_rows=(found.by("dagster_retention_freed", "what") or {}).get("rows"),
                retention_bytes=found.total("dagster_retention_freed_bytes"),
                retention_age_seconds=found.value("dagster_retention_age_seconds"),
            ),
            alerts=alerts,
            away=away,
            autoscale=tuple(
                read_scaled(found, name)
                for name in sorted(found.labels("dagster_autoscale_workers", "service"))
            ),
            hosts=found.by("dagster_host_workers", "host"),
            autoscale_hosts=found.by("dagster_autoscale_host_workers", "host"),
        )

    @staticmethod
    def take(families: Callable[[], Iterable[Metric]], prometheus: Prometheus | None) -> "Snapshot":
        """One look at the stores. One that is away is part of it, not an error."""
        alerts = Alerts.ask(prometheus)
        try:
            found = families()
        except Exception as error:
            return Snapshot.of((), time.time(), alerts, away=store_of(error))
        return Snapshot.of(found, time.time(), alerts)

    @property
    def problems(self) -> tuple[str, ...]:
        """What the figures themselves show as wrong, with what to do."""
        found = [problem for queue in self.queues if (problem := queue.problem)]
        for kind, is_on in (self.stores.broker_alarms or {}).items():
            if is_on:
                found.append(
                    f"RabbitMQ is short of {kind} and takes no messages: docs/runbooks/broker-alarm.md."
                )
        if self.daemons == {}:
            found.append("No daemon has given a sign of life yet: `make ps` shows the service `daemon`.")
        for name, age in (self.daemons or {}).items():
            if age > DAEMON_SILENCE_SECS:
                found.append(
                    f"Daemon {name.lower()} is silent for {seconds(age)}: `docker compose logs daemon`."
                )
        for queue in self.queues:
            foreign = sum(
                count for code, count in (queue.workers or {}).items() if self.code and code != self.code
            )
            if foreign:
                found.append(f"{counted(foreign, 'worker')} on {queue.name} with other code: `make deploy`.")
        for host, count in (self.hosts or {}).items():
            # Without work there may be none, by will.
            if not count and (self.autoscale_hosts or {}).get(host) != 0:
                found.append(f"No worker of host {host} answers: `make hosts`.")
        used, limit = self.stores.database_connections, self.stores.database_connections_limit
        if used is not None and limit and used >= FULL * limit:
            found.append(
                f"Postgres has {number(used)} of {number(limit)} connections in use: raise POSTGRES_MAX_CONNECTIONS in"
                " .env, then `make up`."
            )
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is good to know, and no problem to cure now."""
        if self.stores.store_fences and not all(self.stores.store_fences.values()):
            return (UNFENCED,)
        return ()

    @property
    def verdict(self) -> Verdict:
        if self.away:
            return Verdict.UNKNOWN
        return Verdict.UNWELL if self.problems or self.alerts.firing else Verdict.WELL

    @property
    def headline(self) -> str:
        """Is all well? In a sentence."""
        count = len(self.problems) + len(self.alerts.firing)
        if self.away:
            return f"{self.away} does not answer: `make ps` shows its state, `make up` starts it."
        if count:
            return f"{counted(count, 'thing')} to look at."
        runs = None if self.runs.by_status is None else sum(self.runs.by_status.values())
        running, waiting = total(q.running for q in self.queues), total(q.waiting for q in self.queues)
        return (
            f"All is well: {counted(runs, 'run')} in progress, {counted(running, 'step')} running,"
            f" {number(waiting)} waiting."
        )

    def as_json(self) -> dict[str, Any]:
        """Of numbers, texts, lists and objects; the keys are stable, null stands for what nobody measures."""
        return {
            "verdict": self.verdict.value,
            "headline": self.headline,
            "problems": list(self.problems),
            **asdict(self),
        }


def queue_names(found: Samples) -> list[str]:
    """Queues that any of the figures knows; steps of other executors are listed while there are some."""
    names = (
        "dagster_queue_messages", "dagster_queue_consumers", "dagster_steps", "dagster_workers", "dagster_queue_utilisation",
    )  # fmt: skip
    known = set().union(*(found.labels(name, "queue") for name in names))
    if not found.total("dagster_steps", queue=NO_QUEUE):
        known.discard(NO_QUEUE)
    return sorted(known)


def read_queue(found: Samples, name: str) -> Queue:
    def of(metric: str, **only: str) -> float | None:
        # 0 where others have one: a queue without any.
        return found.total(metric, queue=name, **only)

    return Queue(
        name=name,
        waiting=of("dagster_steps", state="waiting"),
        running=of("dagster_steps", state="running"),
        oldest_wait_seconds=of("dagster_step_oldest_wait_seconds"),
        ready=of("dagster_queue_messages", state="ready"),
        in_flight=of("dagster_queue_messages", state="in_flight"),
        consumers=of("dagster_queue_consumers"),
        utilisation=found.value("dagster_queue_utilisation", queue=name),
        processes=found.by("dagster_worker_processes", "state", queue=name),
        workers=found.by("dagster_workers", "code", queue=name),
    )


def read_scaled(found: Samples, service: str) -> Scaled:
    numbers = found.by("dagster_autoscale_workers", "number", service=service) or {}
    reasons = found.by("dagster_autoscale_reason", "reason", service=service) or {}
    running, wish, least, most = (numbers.get(name) for name in ("running", "wish", "least", "most"))
    return Scaled(service, running, wish, least, most, next(iter(reasons), None))


def total(values: Iterable[float | None]) -> float | None:
    """Their sum; None when nobody measures one of them."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def store_of(error: Exception) -> str:
    """Which store an error is about, in words that may stand in public: no host, no user."""
    libraries = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    return next((STORES[library] for library in libraries if library in STORES), "A store")
