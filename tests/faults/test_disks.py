"""A store's disk is full, or read-only, under load. On a stack of its own, whose stores have small disks."""

from collections.abc import Iterator

import pytest

from tests.conftest import PROJECT
from tests.faults import faults
from tests.faults.conftest import disk, small_disks
from tests.faults.drill import Drill
from tests.faults.faults import Fault
from tests.faults.grounds import Grounds

NAME = f"{PROJECT}-disks"


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    with small_disks(NAME) as stack:
        grounds = Grounds(stack)
        grounds.prepare()
        yield grounds


def test_a_full_disk_under_postgres_only_delays(drill: Drill) -> None:
    # Given a load under way, whose every step writes to the event log
    drill.steps_in_flight()
    # When Postgres can't write any more, and says so
    drill.strike(faults.disk_full("postgres", disk(NAME, "postgres"), 30))
    log = drill.stack.compose("logs", "--no-log-prefix", "postgres").stdout
    assert "No space left on device" in log
    # Then all goes on when there is room again, and nobody has restarted anything
    drill.nothing_is_lost()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.disk_full("minio", disk(NAME, "minio"), 15), "XMinioStorageFull"),
        (faults.disk_read_only("minio", disk(NAME, "minio"), 15), "AccessDenied"),
    ],
    ids=["full", "read-only"],
)
def test_a_store_that_can_not_write_fails_the_run_with_its_answer_and_it_goes_on_from_there(
    drill: Drill, fault: Fault, reason: str
) -> None:
    # Given a load under way, whose every step writes an output
    drill.steps_in_flight()
    # When the store refuses what is written
    drill.strike(fault)
    # Then
    drill.fails_and_goes_on(reason)
