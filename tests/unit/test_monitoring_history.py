"""What the event log says of runs and steps, as counters, histograms and gauges."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    EventLogEntry,
    MetadataValue,
)
from dagster._core.events import EngineEventData
from prometheus_client import CollectorRegistry

from dagster_stack.failure_reasons import Reason
from dagster_stack.monitoring.counters import FORGET_SECS, History
from dagster_stack.step.step_failure import report_failure
from tests.unit.holders import Database, entry

KINDS = DagsterEventType


class Log:
    """An event log on Postgres, and what a process that reads it says."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.storage = database.process().event_log_storage
        self.restart()

    def restart(self) -> None:
        self.registry = CollectorRegistry()
        self.history = History(self.registry)

    def look(self, now: float = 1000.0) -> None:
        with self.database.engine.connect() as connection:
            self.history.look(connection, now)

    def store(
        self,
        run: DagsterRun,
        kind: DagsterEventType,
        at: float,
        step: str = "a",
        text: str = "",
        *,
        data: Any = None,
    ) -> None:
        event: EventLogEntry = entry(run.run_id, kind, step, data, text)
        self.storage.store_event(event._replace(timestamp=at))

    def send(self, run: DagsterRun, at: float, step: str = "a", queue: str = "q") -> None:
        # As executors announce it.
        data = EngineEventData({"queue": MetadataValue.text(queue), "attempt": MetadataValue.int(1)})
        self.store(run, KINDS.STEP_WORKER_STARTING, at, step, data=data)

    def step(
        self, run: DagsterRun, at: float, end: DagsterEventType = KINDS.STEP_SUCCESS, text: str = ""
    ) -> None:
        """A step that was sent, waits 2 s and takes 3 s."""
        self.send(run, at)
        self.store(run, KINDS.STEP_WORKER_STARTED, at + 1)
        self.store(run, KINDS.STEP_START, at + 2)
        self.store(run, end, at + 5, text=text)

    def fail(self, run: DagsterRun, reason: Reason, text: str) -> None:
        """As a worker reports it."""

        def report(event: DagsterEvent, run_id: str, _: int) -> None:
            self.storage.store_event(entry(run_id, KINDS.STEP_FAILURE, "a")._replace(dagster_event=event))

        instance = SimpleNamespace(report_dagster_event=report, event_log_storage=self.storage)
        report_failure(cast(DagsterInstance, instance), run, "a", reason, text)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def log(database_url: str) -> Log:
    database = Database(database_url)
    database.execute("UPDATE runs SET status = 'SUCCESS'")
    log = Log(database)
    log.look()
    return log


def test_a_steps_wait_and_duration_are_told_by_its_queue(log: Log) -> None:
    run = log.database.run()
    log.step(run, at=100)
    log.look()
    assert log.value("dagster_steps_ended_total", queue="q", outcome="success") == 1
    assert log.value("dagster_step_wait_seconds_sum", queue="q") == 2
    assert log.value("dagster_step_duration_seconds_sum", queue="q") == 3
    assert log.value("dagster_steps", queue="q", state="running") == 0


def test_what_was_read_is_not_counted_again(log: Log) -> None:
    log.step(log.database.run(), at=100)
    for _ in range(4):
        log.look()
    assert log.value("dagster_steps_ended_total", queue="q", outcome="success") == 1


def test_a_queues_counters_begin_at_0(log: Log) -> None:
    log.send(log.database.run(), at=100)
    log.look()
    assert log.value("dagster_steps_ended_total", queue="q", outcome="failure") == 0
    assert log.value("dagster_step_redeliveries_total", queue="q") == 0


def test_steps_wait_then_run(log: Log) -> None:
    run = log.database.run()
    log.send(run, at=100)
    log.send(run, at=150, step="b")
    log.look(now=160)
    assert log.value("dagster_steps", queue="q", state="waiting") == 2
    assert log.value("dagster_step_oldest_wait_seconds", queue="q") == 60
    log.store(run, KINDS.STEP_START, 161)
    log.look(now=170)
    assert log.value("dagster_steps", queue="q", state="waiting") == 1
    assert log.value("dagster_steps", queue="q", state="running") == 1
    assert log.value("dagster_step_oldest_wait_seconds", queue="q") == 20


def test_an_attempt_after_the_first_runs_once_it_restarted(log: Log) -> None:
    # Given a step whose first attempt asked for another one
    run = log.database.run()
    log.step(run, at=100, end=KINDS.STEP_UP_FOR_RETRY)
    log.send(run, at=110)
    log.look(now=112)
    assert log.value("dagster_steps", queue="q", state="waiting") == 1
    # When that one begins: Dagster has another kind of event for it
    log.store(run, KINDS.STEP_RESTARTED, 113)
    log.look(now=120)
    # Then it runs
    assert log.value("dagster_steps", queue="q", state="running") == 1
    assert log.value("dagster_steps", queue="q", state="waiting") == 0
    assert log.value("dagster_step_oldest_wait_seconds", queue="q") == 0
    # And its wait and duration count as those of any other
    log.store(run, KINDS.STEP_SUCCESS, 119)
    log.look()
    assert log.value("dagster_step_wait_seconds_sum", queue="q") == 2 + 3
    assert log.value("dagster_step_duration_seconds_sum", queue="q") == 3 + 6


def test_an_execution_after_the_first_is_a_redelivery(log: Log) -> None:
    run = log.database.run()
    log.send(run, at=100)
    for at in (101, 110):
        log.store(run, KINDS.STEP_WORKER_STARTED, at)
    log.look()
    assert log.value("dagster_step_redeliveries_total", queue="q") == 1


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (Reason.DELIVERY_LIMIT, "dagster_steps_failed_by_delivery_limit_total"),
        (Reason.FOREIGN_CODE, "dagster_steps_failed_by_code_total"),
    ],
)
def test_steps_that_the_stack_fails_are_told_by_the_reason(log: Log, reason: Reason, name: str) -> None:
    """As workers report it, whatever its text."""
    run = log.database.run()
    log.send(run, at=100)
    log.fail(run, reason, 'any "text": "delivery-limit"}, "label": "dagster-stack/reason"')
    for text in (
        "its own fault",
        "It was delivered 3 times",
        '"text": "foreign-code"}, "label": "dagster-stack/reason"',
    ):
        log.step(log.database.run(), at=100, end=KINDS.STEP_FAILURE, text=text)
    log.look()
    assert log.value(name, queue="q") == 1
    assert log.value("dagster_steps_ended_total", queue="q", outcome="failure") == 4


def run_event(kind: DagsterEventType, at: float) -> Callable[[DagsterRun], EventLogEntry]:
    def made(run: DagsterRun) -> EventLogEntry:
        event = entry(run.run_id, kind)
        assert event.dagster_event
        return event._replace(
            step_key=None, timestamp=at, dagster_event=event.dagster_event._replace(step_key=None)
        )

    return made


def test_a_runs_way_to_its_start_and_its_end_are_told_by_its_job(log: Log) -> None:
    run = log.database.run()
    for make in (
        run_event(KINDS.RUN_ENQUEUED, 100),
        run_event(KINDS.RUN_START, 102),
        run_event(KINDS.RUN_SUCCESS, 112),
    ):
        log.storage.store_event(make(run))
    log.look()
    assert log.value("dagster_run_launch_to_start_seconds_sum", job="a_job") == 2
    assert log.value("dagster_run_duration_seconds_sum", job="a_job") == 10
    assert log.value("dagster_runs_ended_total", job="a_job", status="success") == 1


def test_a_process_that_starts_knows_what_is_under_way_and_counts_only_what_follows(log: Log) -> None:
    # Given a run with a step that ended and one that waits, before this process began
    run = log.database.run()
    log.step(run, at=100)
    log.send(run, at=200, step="b")
    log.restart()
    log.look(now=230)
    assert log.value("dagster_steps", queue="q", state="waiting") == 1
    assert log.value("dagster_step_oldest_wait_seconds", queue="q") == 30
    assert log.value("dagster_steps_ended_total", queue="q", outcome="success") == 0
    # When the one that waits starts and ends
    log.store(run, KINDS.STEP_START, 240, step="b")
    log.store(run, KINDS.STEP_SUCCESS, 250, step="b")
    log.look()
    # Then it counts, with all of its wait
    assert log.value("dagster_steps_ended_total", queue="q", outcome="success") == 1
    assert log.value("dagster_step_wait_seconds_sum", queue="q") == 40


def test_a_run_that_ended_has_no_open_steps(log: Log) -> None:
    run = log.database.run(DagsterRunStatus.STARTED)
    log.send(run, at=100)
    log.look()
    log.storage.store_event(run_event(KINDS.RUN_CANCELED, 120)(run))
    log.look()
    assert log.value("dagster_steps", queue="q", state="waiting") == 0
    assert log.value("dagster_runs_ended_total", job="a_job", status="canceled") == 1


def test_a_step_that_ends_after_its_run_is_of_its_queue_and_a_run_ends_once(log: Log) -> None:
    # Given a run that is ended by force while a step of it is being executed
    run = log.database.run(DagsterRunStatus.STARTED)
    log.send(run, at=100)
    log.store(run, KINDS.STEP_START, 101)
    for at in (110, 111):
        log.storage.store_event(run_event(KINDS.RUN_CANCELED, at)(run))
    log.look()
    # When the step ends
    log.store(run, KINDS.STEP_FAILURE, 112)
    log.look()
    # Then it counts where it ran, and the run's second end does not
    assert log.value("dagster_steps_ended_total", queue="q", outcome="failure") == 1
    assert log.value("dagster_step_duration_seconds_sum", queue="q") == 11
    assert log.value("dagster_runs_ended_total", job="a_job", status="canceled") == 1
    assert log.value("dagster_steps_ended_total", queue="none", outcome="failure") is None


def test_a_deleted_run_is_forgotten(log: Log) -> None:
    run = log.database.run(DagsterRunStatus.STARTED)
    log.send(run, at=100)
    log.look(now=1000)
    assert log.value("dagster_steps", queue="q", state="waiting") == 1
    log.database.execute(f"DELETE FROM runs WHERE run_id = '{run.run_id}'")
    log.look(now=1001)
    log.look(now=1001 + FORGET_SECS)
    assert log.value("dagster_steps", queue="q", state="waiting") == 0


def test_a_jobs_counters_begin_at_0_with_this_process(log: Log) -> None:
    log.database.run(DagsterRunStatus.SUCCESS)
    log.restart()
    log.look()
    for status in ("success", "failure", "canceled"):
        assert log.value("dagster_runs_ended_total", job="a_job", status=status) == 0
    assert log.value("dagster_run_duration_seconds_count", job="a_job") == 0


def test_a_log_that_was_replaced_by_an_older_one_is_read_on(log: Log) -> None:
    # Given looks that have read far
    run = log.database.run()
    for at in range(100, 105):
        log.step(run, at)
    log.look(now=1000)
    log.look(now=2000)
    log.look(now=3000)
    # When a backup is restored: rows have lower numbers
    log.database.execute("TRUNCATE event_logs RESTART IDENTITY CASCADE")
    log.look(now=4000)
    log.step(run, at=200)
    log.look(now=4001)
    # Then what happens from now on counts
    assert log.value("dagster_steps_ended_total", queue="q", outcome="success") == 6


def test_more_than_a_page_is_read_at_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagster_stack.monitoring.event_reader.PAGE", 3)
    run = log.database.run()
    for at in range(100, 105):
        log.step(run, at)
    log.look()
    assert log.value("dagster_steps_ended_total", queue="q", outcome="success") == 5


@pytest.mark.parametrize("restarts", [False, True])
def test_an_event_that_becomes_visible_late_is_counted(log: Log, restarts: bool) -> None:
    """Writers commit in another order than they took their rows' numbers."""
    run = log.database.run(DagsterRunStatus.STARTED)
    log.send(run, at=100)
    with log.database.engine.connect().execution_options(isolation_level="READ COMMITTED") as late:
        began = late.begin()
        late.exec_driver_sql(
            "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)"
            f" VALUES ('{run.run_id}', '', 'STEP_START', to_timestamp(102) AT TIME ZONE 'utc', 'a')"
        )
        log.store(run, KINDS.STEP_WORKER_STARTED, 101)
        if restarts:
            # A process that begins at that very moment
            log.restart()
        log.look()
        began.commit()
    log.look()
    assert log.value("dagster_step_wait_seconds_count", queue="q") == 1
