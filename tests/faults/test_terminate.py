"""A run that is terminated in Dagit while it is in the middle of its work, and one that nobody drives any more."""

import time
from collections.abc import Iterator

import pytest

from tests.faults import faults
from tests.faults.drill import Drill
from tests.faults.grounds import LOCATION, Grounds
from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: The promise, with steps that run and steps that wait in the queue.
CANCELED_SECS, RUNNING, WAITING = 10, 8, 100
#: One of those that run at first, which does not mind interrupts.
STUBBORN_STEP = "leaf[n1]"
#: Far longer than a test waits.
LONG_SECS = 300


@pytest.fixture
def eight_workers(stack: Stack) -> Iterator[None]:
    before = len(stack.containers("worker"))
    stack.make("scale", f"N={RUNNING}")
    yield
    stack.make("scale", f"N={before}")


def begun(grounds: Grounds, run_id: str) -> int:
    marks = Drill(grounds, run_ids=[run_id]).marks()
    return sum(mark.what == "begin" and mark.step.startswith("leaf") for mark in marks)


def launch_long_steps(grounds: Grounds) -> str:
    stubborn = {"how": "stubborn", "seconds": LONG_SECS}
    leaf = {"seconds": LONG_SECS, "trouble": {STUBBORN_STEP: stubborn}}
    config = {"source": {"config": {"keys": RUNNING + WAITING}}, "leaf": {"config": leaf}}
    return grounds.stack.launch("load", {"ops": config}, None, LOCATION)


@pytest.mark.quick
@pytest.mark.usefixtures("eight_workers")
def test_a_terminated_run_is_canceled_within_10_seconds_and_nothing_of_it_runs_afterwards(
    grounds: Grounds,
) -> None:
    # Given a run with 8 steps at work and 100 in the queue
    run_id = launch_long_steps(grounds)
    wait_until(lambda: begun(grounds, run_id), 120, "8 steps at work", until=lambda found: found == RUNNING)

    # When it is terminated in Dagit
    began = time.monotonic()
    runs.terminate(grounds.stack, run_id)

    # Then it soon ends, though a step does not mind its interrupt
    ends = grounds.wait_for([run_id], CANCELED_SECS)
    assert ends == {run_id: "CANCELED"}
    assert time.monotonic() - began < CANCELED_SECS

    # And its queue is soon empty, without a step more begun: workers are free for others
    wait_until(grounds.waiting_messages, 60, "empty queues", until=lambda waiting: "dagster" not in waiting)
    assert grounds.wait_for([grounds.launch_canaries(RUNNING)], 60).popitem()[1] == "SUCCESS"
    assert begun(grounds, run_id) == RUNNING


def test_a_run_without_any_runner_can_be_terminated_by_force(drill: Drill) -> None:
    grounds = drill.grounds
    # Given a run under way, whose runners are all gone
    run_id = launch_long_steps(grounds)
    wait_until(lambda: begun(grounds, run_id), 120, "steps at work")
    with drill.during(faults.stopped("runner")):
        # When it is terminated by force
        runs.terminate(grounds.stack, run_id, "MARK_AS_CANCELED_IMMEDIATELY")
        # Then it has ended, and its steps do too, though nobody calls them back
        assert grounds.wait_for([run_id], CANCELED_SECS) == {run_id: "CANCELED"}
        at_work = begun(grounds, run_id)
        wait_until(lambda: grounds.waiting_messages().get("dagster", 0), 90, "no step of it in the queue",
                   until=lambda waiting: waiting == 0)  # fmt: skip
    # And what waited was never begun
    assert begun(grounds, run_id) == at_work
    # And each worker is free, also the one whose step did not mind its interrupt
    workers = len(faults.running(grounds.stack, "worker"))
    assert grounds.wait_for([grounds.launch_canaries(workers)], 60).popitem()[1] == "SUCCESS"
