"""What happened to runs and steps since this process began to look: counted as the event log grows.

Counts begin at 0 with the process, as Prometheus expects of counters.
"""

from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import sqlalchemy
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.engine import Connection

from dagster_stack.failure_reasons import Reason
from dagster_stack.monitoring.event_reader import (
    ENQUEUED,
    RUN_ENDS,
    RUN_STARTED,
    SENT,
    STARTED,
    STEP_ENDS,
    TAKEN,
    EventReader,
    LogRow,
)
from dagster_stack.monitoring.gauges import OPEN_STATUSES

#: Seconds that a run is remembered after its end, for events that come later, or after it was deleted.
FORGET_SECS = 60
#: Of a step that no message was seen of, such as one of another executor.
NO_QUEUE = "none"
#: Seconds. Waits are short while there are workers; steps and runs take from milliseconds to a day.
WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)
DURATIONS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)

OPEN_RUNS = sqlalchemy.text("SELECT run_id FROM runs WHERE status = ANY(CAST(:statuses AS text[]))")
JOBS = sqlalchemy.text("SELECT DISTINCT pipeline_name FROM runs")


@dataclass
class Attempt:
    """An attempt of a step that was sent and has not ended. Times in seconds since 1970."""

    queue: str
    sent_at: float | None = None
    started_at: float | None = None
    executions: int = 0


@dataclass
class KnownRun:
    """A run that is under way, or ended a moment ago."""

    enqueued_at: float | None = None
    started_at: float | None = None
    has_ended: bool = False
    steps: dict[str, Attempt] = field(default_factory=dict)


class History:
    """Counts what happens; `look` reads what is new."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        waits = partial(Histogram, buckets=WAITS, registry=registry)
        durations = partial(Histogram, buckets=DURATIONS, registry=registry)
        self.runs_ended = counter("dagster_runs_ended", "Runs that have ended.", ["job", "status"])
        self.launch = waits(
            "dagster_run_launch_to_start_seconds",
            "From a run's entry into the run queue to its start.",
            ["job"],
        )
        self.run_duration = durations(
            "dagster_run_duration_seconds", "From a run's start to its end.", ["job"]
        )
        self.steps_ended = counter(
            "dagster_steps_ended", "Attempts of steps that have ended.", ["queue", "outcome"]
        )
        self.wait = waits("dagster_step_wait_seconds", "From the sending of a step to its start.", ["queue"])
        self.duration = durations(
            "dagster_step_duration_seconds", "From a step's start to its end.", ["queue"]
        )
        self.redeliveries = counter(
            "dagster_step_redeliveries", "Executions of step attempts after their first one.", ["queue"]
        )
        over_limit = counter(
            "dagster_steps_failed_by_delivery_limit", "Steps whose workers were lost too often.", ["queue"]
        )
        foreign_code = counter(
            "dagster_steps_failed_by_code", "Steps that no worker with their run's code took.", ["queue"]
        )
        #: By the reason that the stack gave, those that are counted.
        self.failed = {Reason.DELIVERY_LIMIT.value: over_limit, Reason.FOREIGN_CODE.value: foreign_code}
        self.open_steps = gauge("dagster_steps", "Steps of runs in progress.", ["queue", "state"])
        self.oldest = gauge(
            "dagster_step_oldest_wait_seconds", "Age of the step that has waited longest.", ["queue"]
        )
        self._feed = EventReader()
        self._runs: dict[str, KnownRun] = {}
        self._queues: set[str] = set()
        self._jobs: set[str] = set()
        #: Runs that are known here and not open in the database, and since when.
        self._ended: dict[str, float] = {}

    def look(self, connection: Connection, now: float) -> None:
        """Read what is new; raises SQLAlchemy's errors, and goes on where it was after them."""
        if not self._feed.has_begun(connection):
            self._begin(connection, now)
        for event in self._feed.news(connection, now):
            self.take(event)
        self._forget(connection, now)
        self._measure(now)

    def _begin(self, connection: Connection, now: float) -> None:
        """Learn which jobs there are and what is under way, without counting it."""
        self._runs, self._ended = {}, {}
        for (job,) in connection.execute(JOBS):
            self._know_job(job)
        for event in self._feed.begin(connection, open_runs(connection), now):
            self.take(event, counted=False)

    def _forget(self, connection: Connection, now: float) -> None:
        """Runs that ended a while ago, and such that were deleted."""
        is_open = set(open_runs(connection))
        self._ended = {run: self._ended.get(run, now) for run in self._runs.keys() - is_open}
        for run, since in self._ended.items():
            if now - since >= FORGET_SECS:
                del self._runs[run]

    def know(self, queues: Iterable[str]) -> None:
        """Begin the counters of queues at 0."""
        for queue in queues:
            self._know(queue)

    # --- what one event says -----------------------------------------------------------------------------

    def take(self, event: LogRow, counted: bool = True) -> None:
        """Account for an event; one that is not `counted` only tells what is under way."""
        if event.step is None:
            self._take_of_run(event, counted)
        else:
            self._take_of_step(event, event.step, counted)

    def _take_of_run(self, event: LogRow, counted: bool) -> None:
        self._know_job(event.job)
        run = self._runs.setdefault(event.run_id, KnownRun())
        if event.kind == ENQUEUED:
            run.enqueued_at = event.at
        elif event.kind == RUN_STARTED and run.started_at is None:
            run.started_at = event.at
            if counted and run.enqueued_at is not None:
                self.launch.labels(event.job).observe(event.at - run.enqueued_at)
        elif event.kind in RUN_ENDS and not run.has_ended:
            run.has_ended = True
            if counted:
                self.runs_ended.labels(event.job, RUN_ENDS[event.kind]).inc()
                if run.started_at is not None:
                    self.run_duration.labels(event.job).observe(event.at - run.started_at)

    def _take_of_step(self, event: LogRow, step: str, counted: bool) -> None:
        steps = self._runs.setdefault(event.run_id, KnownRun()).steps
        if event.kind == SENT:
            steps[step] = Attempt(event.said or NO_QUEUE, sent_at=event.at)
        attempt = steps.setdefault(step, Attempt(NO_QUEUE))
        self._know(attempt.queue)
        if event.kind == TAKEN:
            attempt.executions += 1
            if counted and attempt.executions > 1:
                self.redeliveries.labels(attempt.queue).inc()
        elif event.kind in STARTED:
            if counted and attempt.sent_at is not None and attempt.started_at is None:
                self.wait.labels(attempt.queue).observe(event.at - attempt.sent_at)
            attempt.started_at = event.at
        elif event.kind in STEP_ENDS:
            del steps[step]
            if counted:
                self._count_end(event, attempt)

    def _count_end(self, event: LogRow, attempt: Attempt) -> None:
        self.steps_ended.labels(attempt.queue, STEP_ENDS[event.kind]).inc()
        if attempt.started_at is not None:
            self.duration.labels(attempt.queue).observe(event.at - attempt.started_at)
        if event.kind == "STEP_FAILURE" and (failed := self.failed.get(event.said or "")):
            failed.labels(attempt.queue).inc()

    def _know(self, queue: str) -> None:
        """Begin a queue's counters at 0, so that a rate sees the first failure."""
        if queue in self._queues:
            return
        self._queues.add(queue)
        for outcome in STEP_ENDS.values():
            self.steps_ended.labels(queue, outcome)
        for figure in (self.redeliveries, *self.failed.values(), self.wait, self.duration):
            figure.labels(queue)

    def _know_job(self, job: str) -> None:
        """The same for a job."""
        if job in self._jobs:
            return
        self._jobs.add(job)
        for status in RUN_ENDS.values():
            self.runs_ended.labels(job, status)
        for histogram in (self.launch, self.run_duration):
            histogram.labels(job)

    def _measure(self, now: float) -> None:
        """What is open, by queue and state; a queue without any has 0."""
        states: Tally[tuple[str, str]] = Tally()
        oldest: dict[str, float] = {}
        for attempt in (
            each for run in self._runs.values() if not run.has_ended for each in run.steps.values()
        ):
            waits = attempt.started_at is None
            states[attempt.queue, "waiting" if waits else "running"] += 1
            if waits and attempt.sent_at is not None:
                oldest[attempt.queue] = max(oldest.get(attempt.queue, 0.0), now - attempt.sent_at)
        for queue in self._queues:
            for state in ("waiting", "running"):
                self.open_steps.labels(queue, state).set(states[queue, state])
            self.oldest.labels(queue).set(oldest.get(queue, 0.0))


def open_runs(connection: Connection) -> list[str]:
    """The ids of the runs that have not ended."""
    return [run for (run,) in connection.execute(OPEN_RUNS, {"statuses": list(OPEN_STATUSES)})]
