"""Drill 3: what drives the runs ends, leaves, or falls silent."""

import pytest

from tests.faults import faults
from tests.faults.drill import Drill

#: Longer than the age at which a run's lease is stale (15 s).
SILENT_SECS = 40


@pytest.mark.quick
def test_the_runs_of_a_killed_runner_are_driven_on_by_another(drill: Drill) -> None:
    # Given more runs than the runners drive at once
    drill.runs_in_flight()
    # When one of them is gone from one moment to the next
    drill.strike(faults.crashed("runner"))
    # Then no step was executed twice: what was in flight is waited for, not sent again
    assert drill.nothing_is_lost().run_twice == 0


@pytest.mark.quick
def test_a_run_goes_on_when_all_runners_were_killed(drill: Drill) -> None:
    # Given a load under way
    drill.steps_in_flight()
    # When nobody drives a run any more
    drill.strike(faults.all_crashed("runner"))
    # Then it is driven on
    assert drill.nothing_is_lost().run_twice == 0


def test_a_runner_that_is_stopped_hands_its_runs_over(drill: Drill) -> None:
    # Given more runs than the runners drive at once
    drill.runs_in_flight()
    # When all of them are stopped by an operator, and started again
    drill.strike(faults.stopped("runner"))
    # Then
    assert drill.nothing_is_lost().run_twice == 0


def test_a_runner_that_was_paused_does_not_drive_a_run_that_another_one_has(drill: Drill) -> None:
    # Given more runs than the runners drive at once
    drill.runs_in_flight()
    # When one is silent so long that its runs go to the other, and then goes on where it was
    drill.strike(faults.paused("runner", SILENT_SECS))
    # Then no step was sent by both
    assert drill.nothing_is_lost().run_twice == 0


def test_a_runner_cut_off_from_the_broker_does_not_drive_a_run_that_another_one_has(drill: Drill) -> None:
    # Given more runs than the runners drive at once
    drill.runs_in_flight()
    # When one reaches the database and not the broker, which takes its runs away from it
    drill.strike(faults.cut_off("runner", "broker", SILENT_SECS))
    # Then no step was sent by both
    assert drill.nothing_is_lost().run_twice == 0
