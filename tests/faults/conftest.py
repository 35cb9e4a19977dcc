"""The grounds of the drills: a copy of the stack of their own, with jobs and settings of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

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
