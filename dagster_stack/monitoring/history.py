"""What happened to runs and steps since this process began to look: counted as the event log grows.

Each look reads only what is new, by the log's primary key, so that it costs the same with a million events as with a
thousand. Counts begin at 0 with the process, as Prometheus expects of counters.
"""

from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.engine import Connection

#: Events that are counted.
RUN_ENDS = {"PIPELINE_SUCCESS": "success", "PIPELINE_FAILURE": "failure", "PIPELINE_CANCELED": "canceled"}
STEP_ENDS = {"STEP_SUCCESS": "success", "STEP_FAILURE": "failure", "STEP_UP_FOR_RETRY": "retry"}
SENT, TAKEN, STARTED = "STEP_WORKER_STARTING", "STEP_WORKER_STARTED", "STEP_START"
ENQUEUED, RUN_STARTED = "PIPELINE_ENQUEUED", "PIPELINE_START"
KINDS = (*RUN_ENDS, *STEP_ENDS, SENT, TAKEN, STARTED, ENQUEUED, RUN_STARTED)

#: Rows that one query reads at most.
PAGE = 5000
#: Seconds that a row may become visible later than one with a higher number, at least: so long a look reads again.
LATE_SECS = 10
#: Seconds after which a run is forgotten that has ended, or was deleted, without an event of it.
FORGET_SECS = 60
#: Of a step that no message was seen of, such as one of another executor.
NO_QUEUE = "none"
#: Seconds. Waits are short while there are workers; steps and runs take from milliseconds to a day.
WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)
DURATIONS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)

#: Statuses of runs that have not ended.
OPEN_STATUSES = "'QUEUED', 'NOT_STARTED', 'STARTING', 'STARTED', 'CANCELING'"

#: The text of an event is large: of those that are needed, only the part that is.
READ = """
    SELECT log.id, log.run_id, runs.pipeline_name, log.step_key, log.dagster_event_type,
        extract(epoch FROM log.timestamp),
        CASE log.dagster_event_type
            WHEN 'STEP_WORKER_STARTING' THEN substring(log.event FROM ' to queue \\\\"(.*?)\\\\"\\.')
            WHEN 'STEP_FAILURE' THEN substring(log.event FROM 'It was delivered \\d+ times|No worker with the code of')
        END
    FROM event_logs AS log JOIN runs ON runs.run_id = log.run_id
    WHERE log.dagster_event_type = ANY(:kinds) AND {which}
    ORDER BY log.id LIMIT :limit
"""
NEWS = sqlalchemy.text(READ.format(which="log.id > :after AND NOT log.id = ANY(CAST(:known AS bigint[]))"))
#: What runs in progress have behind them: their steps are open, and nothing of it is counted.
OPEN = sqlalchemy.text(
    READ.format(which=f"log.id > :after AND log.id <= :last AND runs.status IN ({OPEN_STATUSES})")
)
LAST = sqlalchemy.text("SELECT coalesce(max(id), 0) FROM event_logs")
OPEN_RUNS = sqlalchemy.text(f"SELECT run_id FROM runs WHERE status IN ({OPEN_STATUSES})")


@dataclass(frozen=True)
class Happened:
    """An event as it is read: `at` in seconds since 1970, `said` what its text tells of queue or reason."""

    number: int
    run_id: str
    job: str
    step: str | None
    kind: str
    at: float
    said: str | None = None


@dataclass
class Attempt:
    """An attempt of a step that was sent and has not ended. Times in seconds since 1970."""

    queue: str
    sent_at: float | None = None
    started_at: float | None = None
    executions: int = 0


@dataclass
class OpenRun:
    """A run that has not ended."""

    enqueued_at: float | None = None
    started_at: float | None = None
    steps: dict[str, Attempt] = field(default_factory=dict)


class History:
    """Counts what happens; `look` reads what is new."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs_ended = Counter(
            "dagster_runs_ended", "Runs that have ended.", ["job", "status"], registry=registry
        )
        self.launch = Histogram(
            "dagster_run_launch_to_start_seconds", "From a run's entry into the run queue to its start.",
            ["job"], buckets=WAITS, registry=registry,
        )  # fmt: skip
        self.run_duration = Histogram(
            "dagster_run_duration_seconds",
            "From a run's start to its end.",
            ["job"],
            buckets=DURATIONS,
            registry=registry,
        )
        self.steps_ended = Counter(
            "dagster_steps_ended",
            "Attempts of steps that have ended.",
            ["queue", "outcome"],
            registry=registry,
        )
        self.wait = Histogram(
            "dagster_step_wait_seconds",
            "From the sending of a step to its start.",
            ["queue"],
            buckets=WAITS,
            registry=registry,
        )
        self.duration = Histogram(
            "dagster_step_duration_seconds",
            "From a step's start to its end.",
            ["queue"],
            buckets=DURATIONS,
            registry=registry,
        )
        self.redeliveries = Counter(
            "dagster_step_redeliveries",
            "Executions of step attempts after their first one.",
            ["queue"],
            registry=registry,
        )
        self.over_limit = Counter(
            "dagster_steps_failed_by_delivery_limit",
            "Steps whose workers were lost too often.",
            ["queue"],
            registry=registry,
        )
        self.foreign_code = Counter(
            "dagster_steps_failed_by_code",
            "Steps that no worker with their run's code took.",
            ["queue"],
            registry=registry,
        )
        self.open_steps = Gauge(
            "dagster_steps", "Steps of runs in progress.", ["queue", "state"], registry=registry
        )
        self.oldest = Gauge(
            "dagster_step_oldest_wait_seconds",
            "Age of the step that has waited longest.",
            ["queue"],
            registry=registry,
        )
        self._runs: dict[str, OpenRun] = {}
        self._queues: set[str] = set()
        #: Two ends of looks that are LATE_SECS apart, and what was read beyond the older one: rows become visible in
        #: another order than that of their numbers.
        self._marks: tuple[int, int] | None = None
        self._marked_at = 0.0
        self._recent: set[int] = set()
        #: Runs that are open here and not in the database, and since when.
        self._ended: dict[str, float] = {}

    def look(self, connection: Connection, now: float) -> None:
        """Read what is new; raises SQLAlchemy's errors, and goes on where it was after them."""
        if self._marks is None:
            self._begin(connection)
        assert self._marks
        older, last = self._marks[0], max(self._recent, default=self._marks[1])
        while True:
            rows = self._read(connection, NEWS, after=older, known=list(self._recent))
            for event in rows:
                self.take(event)
                self._recent.add(event.number)
                last = max(last, event.number)
            if len(rows) < PAGE:
                break
        if now - self._marked_at >= LATE_SECS:
            self._marks, self._marked_at = (self._marks[1], last), now
            self._recent = {number for number in self._recent if number > self._marks[0]}
        self._forget(connection, now)
        self._measure(now)

    def _forget(self, connection: Connection, now: float) -> None:
        """Runs whose end no event told: deleted ones, and such whose event came later than any look back."""
        open_runs = {run for (run,) in connection.execute(OPEN_RUNS)}
        self._ended = {run: self._ended.get(run, now) for run in self._runs.keys() - open_runs}
        for run, since in self._ended.items():
            if now - since >= FORGET_SECS:
                del self._runs[run]

    def _begin(self, connection: Connection) -> None:
        """Learn what is under way, without counting it."""
        last = int(connection.execute(LAST).scalar_one())
        after = 0
        while rows := self._read(connection, OPEN, after=after, last=last):
            for event in rows:
                self.take(event, counted=False)
            after = rows[-1].number
        self._marks = (last, last)

    @staticmethod
    def _read(connection: Connection, statement: sqlalchemy.TextClause, **values: Any) -> list[Happened]:
        found = connection.execute(statement, {**values, "kinds": list(KINDS), "limit": PAGE})
        return [
            Happened(number, run, job, step, kind, float(at), said)
            for number, run, job, step, kind, at, said in found
        ]

    def know(self, queues: Iterable[str]) -> None:
        """Begin the counters of queues at 0."""
        for queue in queues:
            self._know(queue)

    # --- what one event says -----------------------------------------------------------------------------

    def take(self, event: Happened, counted: bool = True) -> None:
        """Account for an event; one that is not `counted` only tells what is under way."""
        if event.step is None:
            self._take_of_run(event, counted)
        else:
            self._take_of_step(event, event.step, counted)

    def _take_of_run(self, event: Happened, counted: bool) -> None:
        if event.kind in RUN_ENDS:
            run = self._runs.pop(event.run_id, OpenRun())
            if counted:
                self.runs_ended.labels(event.job, RUN_ENDS[event.kind]).inc()
                if run.started_at is not None:
                    self.run_duration.labels(event.job).observe(event.at - run.started_at)
            return
        run = self._runs.setdefault(event.run_id, OpenRun())
        for status in RUN_ENDS.values():
            self.runs_ended.labels(event.job, status)
        if event.kind == ENQUEUED:
            run.enqueued_at = event.at
        elif event.kind == RUN_STARTED and run.started_at is None:
            run.started_at = event.at
            if counted and run.enqueued_at is not None:
                self.launch.labels(event.job).observe(event.at - run.enqueued_at)

    def _take_of_step(self, event: Happened, step: str, counted: bool) -> None:
        steps = self._runs.setdefault(event.run_id, OpenRun()).steps
        if event.kind == SENT:
            queue = event.said or NO_QUEUE
            self._know(queue)
            steps[step] = Attempt(queue, sent_at=event.at)
            return
        attempt = steps.setdefault(step, Attempt(NO_QUEUE))
        if event.kind == TAKEN:
            attempt.executions += 1
            if counted and attempt.executions > 1:
                self.redeliveries.labels(attempt.queue).inc()
        elif event.kind == STARTED:
            if counted and attempt.sent_at is not None and attempt.started_at is None:
                self.wait.labels(attempt.queue).observe(event.at - attempt.sent_at)
            attempt.started_at = event.at
        else:
            del steps[step]
            if counted:
                self._count_end(event, attempt)

    def _count_end(self, event: Happened, attempt: Attempt) -> None:
        self._know(attempt.queue)
        self.steps_ended.labels(attempt.queue, STEP_ENDS[event.kind]).inc()
        if attempt.started_at is not None:
            self.duration.labels(attempt.queue).observe(event.at - attempt.started_at)
        if event.said:
            failed = self.over_limit if event.said.startswith("It was delivered") else self.foreign_code
            failed.labels(attempt.queue).inc()

    def _know(self, queue: str) -> None:
        """Begin a queue's counters at 0, so that a rate sees the first failure."""
        if queue in self._queues:
            return
        self._queues.add(queue)
        for outcome in STEP_ENDS.values():
            self.steps_ended.labels(queue, outcome)
        for counter in (self.redeliveries, self.over_limit, self.foreign_code):
            counter.labels(queue)

    def _measure(self, now: float) -> None:
        """What is open, by queue and state; a queue without any has 0."""
        states: Tally[tuple[str, str]] = Tally()
        oldest: dict[str, float] = {}
        for attempt in (each for run in self._runs.values() for each in run.steps.values()):
            waits = attempt.started_at is None
            states[attempt.queue, "waiting" if waits else "running"] += 1
            if waits and attempt.sent_at is not None:
                oldest[attempt.queue] = max(oldest.get(attempt.queue, 0.0), now - attempt.sent_at)
        for queue in self._queues:
            for state in ("waiting", "running"):
                self.open_steps.labels(queue, state).set(states[queue, state])
            self.oldest.labels(queue).set(oldest.get(queue, 0.0))
