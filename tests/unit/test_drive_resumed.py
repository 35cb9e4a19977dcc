"""A run that goes on where an earlier process of it stopped."""

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
)
from dagster._core.execution.plan.state import KnownExecutionState

from dagster_stack.broker.messages import step_task_id
from tests.unit import step_jobs
from tests.unit.driven_runs import Workers, announced, interrupt, resumed
from tests.unit.runs_by_hand import execute, message, started_run


@pytest.fixture
def instance(postgres_instance: DagsterInstance) -> DagsterInstance:
    """Runs go on in the stack alone: the embedded mode has no runner."""
    return postgres_instance


def test_a_resumed_run_sends_what_is_open_and_nothing_twice(
    instance: DagsterInstance, workers: Workers
) -> None:
    # Given a run of which the first step has ended, and the second one is with a worker
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one", "second")
    execute(message(instance, run, "one"))
    workers.queue.append((5, message(instance, run, "second")))

    # When another process goes on with it
    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS

    # Then it waits for the second step and sends the third
    assert workers.sent == [("third", 1)]
    assert result.ends() == {key: ["STEP_SUCCESS"] for key in ("one", "second", "third")}


def test_a_resumed_run_sends_what_the_earlier_process_had_no_time_to_send(
    instance: DagsterInstance, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one")
    execute(message(instance, run, "one"))

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == [("second", 1), ("third", 1)]


def test_a_resumed_run_of_which_nothing_was_sent_starts_from_the_beginning(
    instance: DagsterInstance, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.dynamic)

    result = resumed(instance, run, step_jobs.dynamic)

    assert result.status == DagsterRunStatus.SUCCESS

    assert len(workers.sent) == len(set(workers.sent)) == 9


def test_a_resumed_run_of_which_all_had_ended_ends(instance: DagsterInstance, workers: Workers) -> None:
    run = started_run(instance, step_jobs.alone)
    announced(instance, run, "one")
    execute(message(instance, run, "one"))

    result = resumed(instance, run, step_jobs.alone)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == []


def test_a_resumed_run_goes_on_inside_a_dynamic_part(instance: DagsterInstance, workers: Workers) -> None:
    # Given a run that stopped when its mapped steps were sent, of which one has ended
    run = started_run(instance, step_jobs.dynamic)
    announced(instance, run, "numbers", *(f"add_one[n{number}]" for number in range(3)))
    execute(message(instance, run, "numbers"))
    execute(message(instance, run, "add_one[n0]"))
    workers.queue += [(5, message(instance, run, f"add_one[n{number}]")) for number in (1, 2)]

    result = resumed(instance, run, step_jobs.dynamic)

    assert result.status == DagsterRunStatus.SUCCESS

    assert sorted(workers.keys) == ["after_total", "total", "twice[n0]", "twice[n1]", "twice[n2]"]


def test_a_resumed_run_sends_the_next_attempt_of_a_step_that_is_to_be_tried_again(
    instance: DagsterInstance, workers: Workers
) -> None:
    # Given a run whose process ended after the first attempt and before the second was announced
    run = started_run(instance, step_jobs.retrying)
    announced(instance, run, "stubborn")
    execute(message(instance, run, "stubborn"))

    result = resumed(instance, run, step_jobs.retrying)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == [("stubborn", 2), ("stubborn", 3), ("add_one", 1)]


def test_a_resumed_run_knows_how_a_later_attempt_ended(instance: DagsterInstance, workers: Workers) -> None:
    # Given a step that asked for a pause, and whose second attempt has ended when the run goes on
    run = started_run(instance, step_jobs.retrying_later)
    announced(instance, run, "later")
    execute(message(instance, run, "later"))
    announced(instance, run, "later", attempt=2)
    execute(message(instance, run, "later", KnownExecutionState(previous_retry_attempts={"later": 1})))

    result = resumed(instance, run, step_jobs.retrying_later)

    assert result.status == DagsterRunStatus.SUCCESS
    assert workers.sent == []


def test_a_resumed_run_sends_a_step_again_that_was_announced_and_lost(
    instance: DagsterInstance, workers: Workers
) -> None:
    """The earlier process announced it, and died before it sent it: nobody has it."""
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one")

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]


def test_a_resumed_run_that_is_stopped_calls_back_what_was_sent_before(
    instance: DagsterInstance, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one")
    interrupt(workers)

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.FAILURE

    assert workers.revoked == [[step_task_id(run.run_id, "one", 1)]]


def test_a_resumed_run_tells_of_a_skipped_step_once(instance: DagsterInstance, workers: Workers) -> None:
    # Given a run that stopped after it had skipped a branch
    run = started_run(instance, step_jobs.branching)
    announced(instance, run, "either", "on_the_left")
    execute(message(instance, run, "either"))
    for key in ("on_the_right", "further_right"):
        skipped = DagsterEvent(DagsterEventType.STEP_SKIPPED.value, run.job_name, step_key=key)
        instance.report_dagster_event(skipped, run.run_id)
    workers.queue.append((5, message(instance, run, "on_the_left")))

    result = resumed(instance, run, step_jobs.branching)

    assert result.status == DagsterRunStatus.SUCCESS

    assert set(result.ends()) == {"either", "on_the_left", "on_the_right", "further_right"}
    assert workers.sent == []
