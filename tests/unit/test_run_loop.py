"""A run driven to its end: what is sent when, what the event log decides, and what that costs."""

from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    ReexecutionOptions,
    execute_job,
    reconstructable,
)

from dagster_stack.messaging.messages import StepMessage
from dagster_stack.run import run_loop
from dagster_stack.run.run_loop import POLL_SECS, READ_GAP_SECS
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.driven_runs import Workers, executed
from tests.unit.runs_by_hand import events, kinds, said

# --- plans of every shape -----------------------------------------------------------------------------------------


@pytest.fixture
def instance(either_instance: DagsterInstance) -> DagsterInstance:
    return either_instance


def test_a_chain_is_sent_step_by_step_and_its_run_succeeds(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.linear)
    assert result.succeeded
    assert result.value("third") == 3

    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert workers.most_at_once == 1
    assert workers.closed
    assert workers.revoked == []


def test_the_caller_of_a_run_sees_what_decided_it_in_the_order_of_the_log(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.linear)
    seen = [event.event_type_value for event in result.events if event.step_key and event.is_step_event]

    stored = [kind for kind in kinds(instance, result.run_id) if kind in set(seen)]
    assert seen == stored
    assert seen.count("STEP_SUCCESS") == seen.count("STEP_START") == 3


def test_steps_that_need_nothing_are_sent_together(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.wide)
    assert result.succeeded

    assert len(workers.sent) == len(set(workers.sent)) == 12
    assert workers.most_at_once == 12


def test_every_step_is_announced_before_any_of_its_group_is_sent(
    instance: DagsterInstance, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[int] = []
    send = workers.send

    def counted(message: StepMessage, *where: Any) -> None:
        announced.append(kinds(instance, message.run_id).count("STEP_WORKER_STARTING"))
        send(message, *where)

    monkeypatch.setattr(workers, "send", counted)
    monkeypatch.setattr(run_loop, "LAUNCH_SIZE", 8)

    executed(instance, step_jobs.wide)

    assert announced == [8] * 8 + [12] * 4


def test_a_failure_ends_what_depends_on_it_and_nothing_else(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.with_a_failure)
    assert not result.succeeded

    assert sorted(workers.keys) == ["beside", "fail", "one"]
    assert result.ends() == {
        "fail": ["STEP_FAILURE"],
        "one": ["STEP_SUCCESS"],
        "beside": ["STEP_SUCCESS"],
    }
    assert result.said("Steps failed: ['fail'].")
    assert workers.revoked == []


def test_a_step_that_gets_nothing_is_skipped_with_all_behind_it(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.branching)
    assert result.succeeded

    assert sorted(workers.keys) == ["either", "on_the_left"]
    assert result.ends() == {
        "either": ["STEP_SUCCESS"],
        "on_the_left": ["STEP_SUCCESS"],
        "on_the_right": ["STEP_SKIPPED"],
        "further_right": ["STEP_SKIPPED"],
    }


def test_a_dynamic_output_becomes_steps_that_are_collected(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.dynamic)
    assert result.succeeded
    assert result.value("after_total") == 10

    assert len(workers.sent) == 1 + 3 + 3 + 1 + 1


def test_a_dynamic_output_can_be_collected_at_once(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.dynamic_collected_at_once)
    assert result.succeeded
    assert result.value("total") == 3


def test_a_dynamic_output_of_nothing_is_collected_as_an_empty_list(
    instance: DagsterInstance, workers: Workers
) -> None:
    """As with every executor of Dagster: a listing of no files is no failure."""
    result = executed(instance, step_jobs.dynamic_without_any)
    assert result.succeeded
    assert result.value("after_total") == 1


@pytest.mark.parametrize(
    ("a_job", "last", "value"), [(step_jobs.nested, "last", 4), (step_jobs.fan_in, "total", 3)]
)
def test_nested_graphs_and_fan_ins_get_their_inputs(
    instance: DagsterInstance, workers: Workers, a_job: Any, last: str, value: int
) -> None:
    result = executed(instance, a_job)
    assert result.succeeded
    assert result.value(last) == value


def test_a_selection_of_ops_is_all_that_runs(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(
        instance, step_jobs.linear, op_selection=["one", "second"], resolved_op_selection={"one", "second"}
    )
    assert result.succeeded

    assert workers.keys == ["one", "second"]


def test_a_run_again_from_failure_loads_what_its_parent_made(
    instance: DagsterInstance, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run of which one step failed, and data that was repaired since
    monkeypatch.setenv("DATA_IS_BROKEN", "1")
    failed = executed(instance, step_jobs.repairable)
    assert failed.ends()["flaky"] == ["STEP_FAILURE"]
    monkeypatch.delenv("DATA_IS_BROKEN")
    workers.sent.clear()

    # When it is run again from there
    options = ReexecutionOptions.from_failure(failed.run_id, instance)
    again = execute_job(reconstructable(step_jobs.repairable), instance=instance, reexecution_options=options)
    with again as result:
        assert result.success
        assert result.output_for_node("last") == 3

    # Then what had succeeded is not executed again
    assert workers.keys == ["flaky", "last"]


# --- attempts ------------------------------------------------------------------------------------------------------


def test_a_step_is_tried_again_as_often_as_its_policy_says(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.retrying)
    assert result.succeeded
    assert result.value("add_one") == 3

    assert workers.sent == [("stubborn", 1), ("stubborn", 2), ("stubborn", 3), ("add_one", 1)]


def test_with_retries_disabled_the_first_failure_counts(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.retrying, {"retries": {"disabled": {}}})
    assert not result.succeeded

    assert workers.sent == [("stubborn", 1)]
    assert result.ends() == {"stubborn": ["STEP_FAILURE"]}


def test_a_step_that_asks_for_a_pause_is_sent_again_after_it(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    started: list[float] = []
    workers.before = lambda _: started.append(clock.now)

    result = executed(instance, step_jobs.retrying_later)
    assert result.succeeded

    first, second = started
    assert 60 <= second - first <= 60 + 2


@pytest.mark.parametrize("wakes_run", [True, False])
def test_a_step_whose_resource_does_not_start_fails_once_and_nothing_else_does(
    instance: DagsterInstance, workers: Workers, clock: Clock, wakes_run: bool
) -> None:
    workers.wakes_run = wakes_run
    begin = clock.now

    result = executed(instance, step_jobs.with_a_broken_resource)
    assert not result.succeeded

    assert sorted(workers.keys) == ["beside", "needs_resource", "one"]
    assert result.ends() == {
        "needs_resource": ["STEP_FAILURE"],
        "one": ["STEP_SUCCESS"],
        "beside": ["STEP_SUCCESS"],
    }
    (failure,) = (event for event in events(instance, result.run_id) if event.is_step_failure)
    assert "this resource does not start" in str(failure.step_failure_data.error)
    # And nobody waited for it
    assert clock.now - begin < (POLL_SECS if wakes_run else 5 * POLL_SECS)


def test_a_step_whose_resource_does_not_start_is_tried_again_by_its_policy(
    instance: DagsterInstance, workers: Workers
) -> None:
    """As in Dagster's multiprocess executor: a database that is away for a moment is the usual reason."""
    result = executed(instance, step_jobs.with_a_broken_resource_tried_again)
    assert not result.succeeded

    assert workers.sent == [("needs_resource_twice", 1), ("needs_resource_twice", 2)]
    assert result.ends() == {"needs_resource_twice": ["STEP_UP_FOR_RETRY", "STEP_FAILURE"]}


# --- limits and order ------------------------------------------------------------------------------------------------


def test_steps_are_sent_in_the_order_of_their_priority(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.prioritized)
    assert result.succeeded

    assert workers.keys == ["heavy", "one", "unimportant"]


def test_a_run_has_so_many_steps_at_once_at_most(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.wide, {"max_concurrent": 4})
    assert result.succeeded

    assert workers.most_at_once == 4
    assert len(workers.sent) == 12


def test_steps_with_a_tag_are_limited_and_others_are_not(instance: DagsterInstance, workers: Workers) -> None:
    at_once: list[int] = []
    workers.before = lambda _: at_once.append(sum("limited" in step.step_key for _, step in workers.queue))
    limits = [{"key": "database", "value": "small", "limit": 1}]

    result = executed(instance, step_jobs.with_a_limit, {"tag_concurrency_limits": limits})
    assert result.succeeded

    assert workers.most_at_once == 2
    assert max(at_once) <= 1
    assert len(workers.sent) == 4


def test_a_pool_with_one_slot_has_one_step_at_once(instance: DagsterInstance, workers: Workers) -> None:
    instance.event_log_storage.set_concurrency_slots("database", 1)
    try:
        result = executed(instance, step_jobs.with_a_pool)
        assert result.succeeded
    finally:
        instance.event_log_storage.delete_concurrency_limit("database")

    assert workers.most_at_once == 1
    assert len(workers.sent) == 3


def test_a_priority_that_celery_does_not_know_is_told_in_the_run_log(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.with_foreign_priority)
    assert result.succeeded

    (warning,) = (
        line for line in said(instance, result.run_id) if "dagster/priority, which has no effect" in line
    )
    assert "set dagster-celery/priority too: foreign" in warning
    assert "both_priorities" not in warning


# --- what a run costs while nothing happens --------------------------------------------------------------------------


def test_a_run_that_waits_for_one_long_step_asks_the_database_every_few_seconds(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    workers.durations["one"] = 600
    begin = clock.now

    result = executed(instance, step_jobs.alone)
    assert result.succeeded

    assert 600 <= clock.now - begin <= 610
    assert workers.reads <= 600 / POLL_SECS + 5


def test_many_ends_at_once_are_read_at_once(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    """Thousands of wake-ups in a second don't become thousands of queries."""
    begin = clock.now
    result = executed(instance, step_jobs.wide)
    assert result.succeeded

    assert workers.reads <= (clock.now - begin) / READ_GAP_SECS + 3
