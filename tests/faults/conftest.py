"""The grounds of the drills: a copy of the stack of their own, with jobs and settings of their own."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.console import BUILD_FOLDER, ROOT
from scripts.up import make_readable
from tests.conftest import PROJECT, copy_of_stack
from tests.faults.drill import Drill
from tests.faults.grounds import MARKS, Grounds
from tests.stack.stack import Stack

GROUNDS = f"{PROJECT}-drills"
#: Relative to the root of the repository, where every Compose command is started.
COMPOSE_FILES = "compose.yaml:tests/faults/compose.yaml"
#: Small numbers, so that two cores are enough; one process a worker, so that its end is one step's.
SIZES = {"WORKERS": "4", "WORKER_CONCURRENCY": "1", "WORKER_MEMORY": "768m", "RUNNERS": "2"}
#: The stores that may have a disk of their own, with its size: Postgres keeps up to 1 GB of its log.
DISKS = {"postgres": "1536m", "minio": "512m"}


@contextmanager
def drill_stack(project: str, files: str = COMPOSE_FILES, **settings: str) -> Iterator[Stack]:
    """A healthy copy of the stack that knows the drills' jobs."""
    marks = BUILD_FOLDER / project / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    # The containers' user is nobody on this host.
    marks.chmod(0o777)
    make_readable(ROOT / "tests" / "faults")
    with copy_of_stack(project, {"COMPOSE_FILE": files, MARKS: str(marks), **SIZES, **settings}) as stack:
        yield stack


@contextmanager
def small_disks(project: str, **settings: str) -> Iterator[Stack]:
    """Such a copy whose stores have small disks, which a drill can fill."""
    with ExitStack() as kept:
        for store, size in DISKS.items():
            kept.enter_context(mounted(disk(project, store), size))
        files, disks = f"{COMPOSE_FILES}:tests/faults/disks.yaml", str(BUILD_FOLDER / project / "disks")
        yield kept.enter_context(drill_stack(project, files, DRILL_DISKS=disks, **settings))


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "drill", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def disk(project: str, store: str) -> Path:
    """Where the small disk of a store is on this host."""
    return BUILD_FOLDER / project / "disks" / store


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with drill_stack(GROUNDS) as stack:
        yield stack


@pytest.fixture(scope="session")
def grounds(stack: Stack) -> Grounds:
    grounds = Grounds(stack)
    grounds.prepare()
    return grounds


@pytest.fixture
def drill(grounds: Grounds) -> Drill:
    """A drill on grounds that are well: what the last one left must not be blamed on this one."""
    grounds.stack.wait_until_healthy()
    grounds.purge("dead-letters")
    return Drill(grounds)
