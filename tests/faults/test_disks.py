"""A store's disk is full, or read-only, under load. On a stack of its own, whose stores have small disks."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.console import BUILD_FOLDER
from tests.conftest import PROJECT
from tests.faults import faults
from tests.faults.conftest import COMPOSE_FILES, drill_stack
from tests.faults.drill import Drill
from tests.faults.faults import Fault
from tests.faults.grounds import Grounds

NAME = f"{PROJECT}-disks"
#: The stores that have a disk of their own, with its size: Postgres keeps up to 1 GB of its log.
SIZES = {"postgres": "1536m", "minio": "512m"}
DISKS = BUILD_FOLDER / NAME / "disks"


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", NAME, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    with ExitStack() as kept:
        for store, size in SIZES.items():
            kept.enter_context(disk(DISKS / store, size))
        files = f"{COMPOSE_FILES}:tests/faults/disks.yaml"
        grounds = Grounds(kept.enter_context(drill_stack(NAME, files, DRILL_DISKS=str(DISKS))))
        grounds.prepare()
        yield grounds


def test_a_full_disk_under_postgres_only_delays(drill: Drill) -> None:
    # Given a load under way, whose every step writes to the event log
    drill.steps_in_flight()
    # When Postgres can't write any more, and says so
    drill.strike(faults.disk_full("postgres", DISKS / "postgres", 30))
    log = drill.stack.compose("logs", "--no-log-prefix", "postgres").stdout
    assert "No space left on device" in log
    # Then all goes on when there is room again, and nobody has restarted anything
    drill.nothing_is_lost()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.disk_full("minio", DISKS / "minio", 15), "XMinioStorageFull"),
        (faults.disk_read_only("minio", DISKS / "minio", 15), "AccessDenied"),
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
