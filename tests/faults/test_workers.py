"""Drill 1: what executes a step ends in the middle of it."""

import pytest

from tests.faults import faults
from tests.faults.drill import SLOW, SLOW_STEP, Drill
from tests.stack import runs

#: A step in the middle of the load.
VICTIM = "leaf[n40]"


@pytest.mark.quick
def test_the_step_of_a_killed_worker_container_is_executed_by_another(drill: Drill) -> None:
    # Given a load under way, and a worker in the middle of a step
    drill.steps_in_flight(SLOW)
    container = drill.container_executing(SLOW_STEP)
    # When it is gone from one moment to the next
    drill.strike(faults.crashed("worker", container))
    # Then the step in its hands, and no other, was executed twice, and counted once
    assert drill.nothing_is_lost().run_twice == 1
    assert drill.executions(SLOW_STEP) == 2


@pytest.mark.quick
def test_the_step_of_a_killed_pool_process_is_executed_again(drill: Drill) -> None:
    # Given a load under way, and a worker in the middle of a step
    drill.steps_in_flight(SLOW)
    container = drill.container_executing(SLOW_STEP)
    # When the process that executes its steps is killed, and its main process lives on
    drill.strike(faults.pool_process_killed(container))
    # Then the step in its hands, and no other, was executed twice, and counted once
    assert drill.nothing_is_lost().run_twice == 1
    assert drill.executions(SLOW_STEP) == 2


@pytest.mark.quick
def test_a_forking_step_reports_what_its_children_log_and_ends_once(drill: Drill) -> None:
    # Given a load in which one step forks children that log, and one that comes back from the op
    drill.steps_in_flight({VICTIM: {"how": "fork"}})
    # When it does so
    drill.harm_of_its_own("a step forks", VICTIM)
    # Then nothing was executed twice
    assert drill.nothing_is_lost().run_twice == 0
    # And each line of a child is in the run's log, once
    (run_id,) = drill.run_ids
    said = [str(event["message"]) for event in drill.stack.events(run_id)]
    lines = sorted(line for line in said if line.startswith("child "))
    assert lines == sorted(f"child {child} line {line}" for child in range(4) for line in range(300))


@pytest.mark.quick
def test_a_child_that_ignores_signals_does_not_outlive_its_steps_killed_process(drill: Drill) -> None:
    # Given a step that has started a tool which only SIGKILL ends, in a session of its own
    drill.steps_in_flight({SLOW_STEP: {"how": "orphan", "seconds": 6}})
    container = drill.container_executing(SLOW_STEP)
    # When its process is killed
    drill.strike(faults.pool_process_killed(container))
    # Then the step was executed again, by when that tool was gone: it has left no sign of life since
    assert drill.nothing_is_lost().run_twice == 1
    marks = [mark for mark in drill.marks() if mark.step == SLOW_STEP]
    second = [mark.at for mark in marks if mark.what == "begin"][1]
    assert [mark.at for mark in marks if mark.what == "tool"]
    assert not [mark for mark in marks if mark.what == "tool" and mark.at > second]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        pytest.param("memory", "a step exhausts its memory", marks=pytest.mark.quick),
        ("exit", "a step calls os._exit"),
        ("segfault", "a step segfaults"),
    ],
)
def test_a_step_that_takes_its_process_with_it_is_executed_again(drill: Drill, how: str, name: str) -> None:
    # Given a load in which one step ends its own process, in its first execution alone
    drill.steps_in_flight({VICTIM: {"how": how}})
    # When it does so
    drill.harm_of_its_own(name, VICTIM)
    # Then it is the only one that was executed twice
    assert drill.nothing_is_lost().run_twice == 1
    assert drill.executions(VICTIM) == 2


def test_a_step_that_kills_every_worker_fails_with_their_names(drill: Drill) -> None:
    # Given a load in which one step ends its process whenever it is executed
    drill.steps_in_flight({VICTIM: {"how": "memory", "times": 99}})
    # When it does so
    drill.harm_of_its_own("a step exhausts its memory each time", VICTIM)

    # Then it is given up after three workers; the run fails by it alone, and all else is well
    drill.nothing_is_lost(end="FAILURE")
    begun = [mark for mark in drill.marks() if mark.step == VICTIM]
    assert len(begun) == 3, begun
    (run_id,) = drill.run_ids
    failed = {step for step, status in runs.statuses(drill.stack, run_id).items() if status == "FAILURE"}
    assert failed == {VICTIM}
    # And its message names those that it took down, and why
    (text,) = [text for text in drill.stack.failure_texts(run_id) if text.startswith(VICTIM)]
    assert "killed (out of memory?)" in text
    assert all(mark.host in text for mark in begun), (begun, text)
