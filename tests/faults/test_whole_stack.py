"""Drill 8: the machine goes down."""

import pytest

from tests.faults import faults
from tests.faults.drill import Drill


@pytest.mark.quick
def test_everything_that_was_running_ends_right_after_the_whole_stack_was_killed(drill: Drill) -> None:
    # Given a load under way
    drill.steps_in_flight()
    # When every container is gone at once, and `docker compose up -d` brings them back
    drill.strike(faults.everything_crashed())
    # Then
    drill.nothing_is_lost()


def test_everything_that_was_queued_ends_right_after_the_whole_stack_was_killed(drill: Drill) -> None:
    # Given runs of which most are waiting
    drill.runs_in_flight()
    # When every container is gone at once, and `docker compose up -d` brings them back
    drill.strike(faults.everything_crashed())
    # Then
    drill.nothing_is_lost()
