"""A run that meets trouble: messages and events that are lost or doubled, a broker that is away, an end from outside."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dagster import (
    DagsterEvent,
    DagsterInstance,
    DagsterRunStatus,
    execute_job,
    reconstructable,
)
from dagster._core.errors import DagsterExecutionInterruptedError

from dagster_stack.messaging.messages import StepMessage, step_task_id
from dagster_stack.run.run_loop import POLL_SECS
from dagster_stack.timing import MISSING_LOOK_SECS, MISSING_LOOKS
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.driven_runs import Workers, executed, interrupt
from tests.unit.runs_by_hand import said

# --- messages and events that are lost, late or doubled ----------------------------------------------------------


@pytest.fixture
def instance(either_instance: DagsterInstance) -> DagsterInstance:
    return either_instance


def stored_again(instance: DagsterInstance, run_id: str, step_key: str) -> None:
    """Copy all rows of a step to the end of the log, as a second execution of the same attempt reports them."""
    for entry in instance.all_logs(run_id):
        if entry.dagster_event and entry.dagster_event.step_key == step_key:
            instance.event_log_storage.store_event(entry)


@pytest.mark.parametrize(
    ("a_job", "last", "value"),
    [
        (step_jobs.linear, "third", 3),
        (step_jobs.dynamic, "after_total", 10),
        (step_jobs.retrying, "add_one", 3),
    ],
    ids=["chain", "dynamic", "retries"],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "when the next step runs"])
def test_events_that_come_twice_count_once(  # noqa: PLR0917
    instance: DagsterInstance, workers: Workers, a_job: Any, last: str, value: int, late: bool
) -> None:
    """A message that was delivered twice at the same moment: both workers execute the step and report it."""
    # Given a second worker that executes every first attempt too, and reports sooner or later
    due: list[StepMessage] = []

    def again(message: StepMessage) -> None:
        due.append(message)
        while len(due) > late:
            each = due.pop(0)
            if each.attempt == 1:
                stored_again(instance, each.run_id, each.step_key)

    workers.after = again

    result = executed(instance, a_job)
    assert result.succeeded
    assert result.value(last) == value

    # Then each attempt was sent once and nothing was counted twice
    assert len(workers.sent) == len(set(workers.sent))


def test_without_wake_ups_a_run_looks_by_itself(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    workers.wakes_run = False
    begin = clock.now

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    assert clock.now - begin <= 3 * (POLL_SECS + 1)


def test_a_step_whose_message_is_lost_is_sent_again(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    workers.loses["second"] = 1
    begin = clock.now

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    assert workers.sent == [("one", 1), ("second", 1), ("second", 1), ("third", 1)]
    assert clock.now - begin <= (MISSING_LOOKS + 1) * MISSING_LOOK_SECS


@contextmanager
def hidden(monkeypatch: pytest.MonkeyPatch, is_hidden: Callable[[DagsterEvent], bool]) -> Iterator[None]:
    """Rows whose numbers were taken and whose writers have not committed: a query does not return them."""
    read = DagsterInstance.get_records_for_run

    def visible(*arguments: Any, **named: Any) -> Any:
        page = read(*arguments, **named)
        records = [
            record
            for record in page.records
            if not (record.event_log_entry.dagster_event and is_hidden(record.event_log_entry.dagster_event))
        ]
        return page._replace(records=records)

    with monkeypatch.context() as patch:
        patch.setattr(DagsterInstance, "get_records_for_run", visible)
        yield


def test_an_end_that_becomes_visible_late_goes_on_soon_while_other_steps_end(
    instance: DagsterInstance, workers: Workers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers that report at the same time the later row can be visible first: on a busy run often."""
    # Given an end that is not visible to the first look after it, in a run whose other steps end all the time
    sent_at: dict[str, float] = {}
    ended_at: dict[str, float] = {}
    workers.durations = {f"step_{number}": 2.0 for number in range(15)}
    workers.before = lambda step: sent_at.setdefault(step.step_key, clock.now)  # type: ignore[assignment]
    workers.after = lambda step: ended_at.setdefault(step.step_key, clock.now)  # type: ignore[assignment]

    def uncommitted(event: DagsterEvent) -> bool:
        seen_late = event.step_key == "first" and event.is_step_success
        return seen_late and clock.now < ended_at.get("step_0", clock.now + 1) + 0.1

    # When all is executed
    with hidden(monkeypatch, uncommitted):
        result = executed(instance, step_jobs.two_chains)

    assert result.succeeded
    # Then what depends on it has not waited for the others
    assert sent_at["after_first"] - ended_at["first"] <= 2 * POLL_SECS


# --- a broker that is away ----------------------------------------------------------------------------------------------


def test_a_run_waits_for_a_broker_that_is_away_and_says_so(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    # Given a broker that is away when the run starts, for ten minutes
    workers.away_until = clock.now + 600

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    # Then its steps were sent once, when it was back, and its log says what it waited for
    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert 600 <= clock.now - 1000 <= 610
    told = said(instance, result.run_id)
    assert (
        len([line for line in told if line.startswith("Waiting for the broker: 1 steps are to be sent.")])
        == 1
    )
    assert told.count("The broker is back: all steps that were ready are sent.") == 1


def test_what_ends_while_the_broker_is_away_is_seen(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    """Workers need the broker to get a step, and not to end one."""

    def goes_away(step: StepMessage) -> None:
        if step.step_key == "one":
            workers.away_until = clock.now + 60

    workers.after = goes_away

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert "Waiting for the broker" in "".join(said(instance, result.run_id))


# --- stopping -----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_told_to_stop_calls_its_steps_back(instance: DagsterInstance, workers: Workers) -> None:
    interrupt(workers)

    result = executed(instance, step_jobs.wide)
    assert not result.succeeded

    (revoked,) = workers.revoked
    assert sorted(revoked) == sorted(step_task_id(result.run_id, f"step_{n:02d}", 1) for n in range(12))
    assert "Told to stop: 12 steps are called back from queues and workers." in said(instance, result.run_id)
    assert workers.closed


def test_an_interrupted_run_tells_its_caller(instance: DagsterInstance, workers: Workers) -> None:
    interrupt(workers)

    with (
        pytest.raises(DagsterExecutionInterruptedError),
        execute_job(reconstructable(step_jobs.linear), instance=instance, raise_on_error=True),
    ):
        pass


def test_a_canceled_run_ends_as_canceled(instance: DagsterInstance, workers: Workers) -> None:
    def cancel(timeout: float) -> bool:
        (_, step), *_ = workers.queue
        run = instance.get_run_by_id(step.run_id)
        assert run
        instance.report_run_canceling(run)
        signal.raise_signal(signal.SIGINT)
        return False

    workers.wait = cancel  # type: ignore[method-assign]

    result = executed(instance, step_jobs.linear)

    assert result.status == DagsterRunStatus.CANCELED
    assert workers.revoked == [[step_task_id(result.run_id, "one", 1)]]


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_run_that_is_executed_by_hand_sees_by_itself_that_it_was_canceled(
    instance: DagsterInstance, workers: Workers, is_forced: bool
) -> None:
    """So far it sent its steps again, since workers skip those of such a run, for as long as its process lived."""
    wait = workers.wait

    def cancel(timeout: float) -> bool:
        (_, step), *_ = workers.queue
        run = instance.get_run_by_id(step.run_id)
        assert run
        if run.status == DagsterRunStatus.STARTED:
            instance.report_run_canceling(run)
            if is_forced:
                instance.report_run_canceled(run)
        # Its message waits behind others
        workers.durations["one"] = 1000
        return wait(timeout)

    workers.wait = cancel  # type: ignore[method-assign]

    result = executed(instance, step_jobs.linear)

    assert result.status == DagsterRunStatus.CANCELED
    assert workers.revoked == [[step_task_id(result.run_id, "one", 1)]]
    assert workers.sent == [("one", 1)]


def test_an_error_in_the_run_itself_calls_nothing_back_until_the_runs_end_is_stored(
    instance: DagsterInstance, workers: Workers
) -> None:
    """The runner that drives it does so then, and a worker ends a step itself when it sees the run's end."""

    def broken(timeout: float) -> bool:
        raise RuntimeError("a mistake")

    workers.wait = broken  # type: ignore[method-assign]

    result = executed(instance, step_jobs.linear)
    assert not result.succeeded

    assert workers.revoked == []
    assert workers.closed
    assert result.said("An exception was thrown during execution.")
