"""Drill 6: Postgres is gone, silent, read-only, or has no connection to give."""

import pytest

from tests.faults import faults
from tests.faults.drill import Drill
from tests.faults.faults import Fault

FAULTS = [
    faults.restarted("postgres"),
    pytest.param(faults.crashed("postgres"), marks=pytest.mark.quick),
    faults.paused("postgres", 30),
    pytest.param(faults.connections_exhausted(20), marks=pytest.mark.quick),
    pytest.param(faults.postgres_read_only(30), marks=pytest.mark.quick),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_database_that_is_away_only_delays(drill: Drill, fault: Fault) -> None:
    # Given a load under way
    drill.steps_in_flight()
    # When the database is away, and comes back
    drill.strike(fault)
    # Then
    drill.nothing_is_lost()


def test_runs_under_way_and_launched_runs_wait_for_a_database_that_is_read_only(drill: Drill) -> None:
    # Given runs under way, and others that were submitted just now
    drill.runs_in_flight()
    # When no write is taken for longer than all signs of life are valid
    drill.strike(faults.postgres_read_only(40))
    # Then
    drill.nothing_is_lost()


def test_runs_that_are_launched_while_the_database_is_killed_are_driven_once(drill: Drill) -> None:
    # Given runs that were submitted just now
    drill.runs_just_launched()
    # When the database is killed
    drill.strike(faults.crashed("postgres"))
    # Then
    drill.nothing_is_lost()
