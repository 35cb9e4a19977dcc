"""A run that goes on where an earlier process of it stopped."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
)
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.execution.plan.state import KnownExecutionState
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.messaging.messages import step_task_id
from dagster_stack.store.event_log import PooledEventLogStorage
from tests.unit import step_jobs
from tests.unit.driven_runs import Workers, announced, interrupt, resumed
from tests.unit.holders import pool_of_one
from tests.unit.runs_by_hand import execute, message, started_run


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


# --- slots of pools ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(instance: DagsterInstance) -> Iterator[PooledEventLogStorage]:
    """The event log, which keeps a pool of one slot."""
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    with pool_of_one(storage, "database"):
        yield storage


def has_slot(pool: PooledEventLogStorage) -> list[str]:
    return [slot.step_key for slot in pool.get_concurrency_info("database").claimed_slots]


def test_a_run_whose_steps_had_ended_waits_for_no_slot(
    instance: DagsterInstance, workers: Workers, pool: PooledEventLogStorage
) -> None:
    # Given a run of which all steps of a pool have ended, and another run that has the pool now
    run, other = (started_run(instance, step_jobs.with_a_pool) for _ in range(2))
    keys = [f"pooled_{number}" for number in range(3)]
    announced(instance, run, *keys)
    for key in keys:
        execute(message(instance, run, key))
    assert pool.claim_concurrency_slot("database", other.run_id, "others").is_claimed
    workers.wait = stands_still  # type: ignore[method-assign]

    result = resumed(instance, run, step_jobs.with_a_pool)

    assert result.succeeded
    assert has_slot(pool) == ["others"]


def stands_still(timeout: float) -> NoReturn:
    raise AssertionError("the run waits for something")


def test_a_slot_that_a_lost_runner_had_for_a_step_that_ended_is_free_again(
    instance: DagsterInstance, workers: Workers, pool: PooledEventLogStorage
) -> None:
    run = started_run(instance, step_jobs.with_a_pool)
    announced(instance, run, "pooled_1")
    assert pool.claim_concurrency_slot("database", run.run_id, "pooled_1").is_claimed
    execute(message(instance, run, "pooled_1"))

    result = resumed(instance, run, step_jobs.with_a_pool)

    assert result.succeeded
    assert sorted(workers.keys) == ["pooled_0", "pooled_2"]
    assert workers.most_at_once == 1
    assert has_slot(pool) == []


def test_the_slot_of_an_attempt_under_way_stays_its_own_though_one_before_it_had_ended(
    instance: DagsterInstance, workers: Workers, pool: PooledEventLogStorage
) -> None:
    # Given a step whose first attempt has ended, and whose second one is with a worker
    run = started_run(instance, step_jobs.with_a_pool)
    announced(instance, run, "pooled_1")
    failed = DagsterEvent(
        DagsterEventType.STEP_UP_FOR_RETRY.value,
        run.job_name,
        step_key="pooled_1",
        event_specific_data=StepRetryData(SerializableErrorInfo("not this time", [], None)),
    )
    instance.report_dagster_event(failed, run.run_id)
    announced(instance, run, "pooled_1", attempt=2)
    assert pool.claim_concurrency_slot("database", run.run_id, "pooled_1").is_claimed
    second = replace(message(instance, run, "pooled_1"), attempt=2)
    workers.queue.append((5, second))
    had: list[list[str]] = []
    workers.before = lambda _: had.append(has_slot(pool))

    result = resumed(instance, run, step_jobs.with_a_pool)

    # Then it has the slot all the time
    assert result.succeeded
    assert had[0] == ["pooled_1"]
    assert all(len(slots) == 1 for slots in had)
    assert sorted(workers.keys) == ["pooled_0", "pooled_2"]
