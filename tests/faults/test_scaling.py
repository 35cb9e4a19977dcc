"""Drill 2: workers that leave in order, come back, or fall silent."""

from dataclasses import replace

import pytest

from tests.faults import faults
from tests.faults.drill import SLOW, SLOW_STEP, Drill

#: Longer than two heartbeats of the broker (10 s) and the age at which a step's lease is stale (60 s).
SILENT_SECS = 90


@pytest.mark.quick
def test_stopping_all_workers_only_delays(drill: Drill) -> None:
    # Given a load under way
    drill.steps_in_flight()
    # When an operator stops the workers, and starts them again
    drill.strike(faults.stopped("worker"))
    # Then the steps, each shorter than the grace period, have ended in it: none was executed twice
    assert drill.nothing_is_lost().run_twice == 0


def test_a_step_that_must_not_be_executed_twice_fails_when_its_worker_is_stopped(drill: Drill) -> None:
    # Given a load whose steps must not be repeated, and one that outlasts the grace period of a stop
    long_step = {SLOW_STEP: {"how": "sleep", "seconds": 40}}
    drill.steps_in_flight(long_step, tags={"dagster-stack/redeliver": "false"})
    drill.wait_until_begun(SLOW_STEP)
    # When an operator stops the workers, and starts them again
    drill.strike(replace(faults.stopped("worker"), name="worker stopped, a step must not run twice"))
    # Then it fails, and says why; what had not begun, and all else, is executed once
    drill.fails_and_goes_on("must not be executed twice")
    assert drill.executions(SLOW_STEP) == 1


def test_scaling_from_eight_to_one_and_back_loses_nothing(drill: Drill) -> None:
    # Given a load under way that takes longer than the scaling
    drill.steps_in_flight(nap=1)
    # When workers come and go
    drill.strike(faults.scaled("worker", 8, 1, 8))
    # Then those that left had ended their step
    assert drill.nothing_is_lost().run_twice == 0


def test_a_worker_paused_for_longer_than_its_heartbeat_can_not_spoil_anything_afterwards(
    drill: Drill,
) -> None:
    # Given a load under way, and a worker in the middle of a step
    drill.steps_in_flight(SLOW)
    container = drill.container_executing(SLOW_STEP)
    # When it is silent so long that its step goes to another one, and then goes on where it was
    drill.strike(faults.paused("worker", SILENT_SECS, container))
    # Then of the two executions one counts
    assert drill.nothing_is_lost().run_twice == 1
    assert drill.executions(SLOW_STEP) == 2
