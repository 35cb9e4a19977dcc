"""Drill 7: MinIO is gone, silent, or refuses, while steps write their outputs."""

import pytest

from tests.faults import faults
from tests.faults.drill import Drill
from tests.faults.faults import Fault

FAULTS = [
    pytest.param(faults.restarted("minio"), marks=pytest.mark.quick),
    faults.crashed("minio"),
    faults.paused("minio", 20),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_store_that_is_away_only_delays(drill: Drill, fault: Fault) -> None:
    # Given a load under way, whose every step writes an output
    drill.steps_in_flight()
    # When the store is away, and comes back
    drill.strike(fault)
    # Then
    drill.nothing_is_lost()


def test_a_store_that_refuses_fails_the_run_with_the_reason_and_it_goes_on_from_there(drill: Drill) -> None:
    # Given a load under way, whose every step writes an output
    drill.steps_in_flight()
    # When the store answers that the stack's user may not do this, which waiting does not cure
    drill.strike(faults.policy_withdrawn(15))
    # Then
    drill.fails_and_goes_on("AccessDenied")
