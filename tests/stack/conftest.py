"""Runs that several tests look at, each made once a session."""

from dataclasses import dataclass

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc
from tests.stack.stack import Stack


@dataclass(frozen=True)
class Command:
    """What a make target that launched a run ended with."""

    run_id: str
    returncode: int
    stdout: str
    stderr: str


def launched(stack: Stack, *arguments: str) -> Command:
    """Run a make target that launches a run."""
    result = stack.make(*arguments, check=False)
    return Command(runs.run_id_in(result.stdout), result.returncode, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def parallel_run(stack: Stack) -> Command:
    """`parallel_pipeline`, as `make run` runs it."""
    return launched(stack, "run", "JOB=parallel_pipeline", "TAGS=team=data,ticket=42")


@pytest.fixture(scope="session")
def flights_run(stack: Stack) -> Command:
    """`flights`, as `make demo` runs it."""
    return launched(stack, "demo")


@pytest.fixture
def ad_hoc(stack: Stack) -> AdHoc:
    """Jobs of the tests' own; put there for each test, as a container's /tmp is gone when it restarts."""
    jobs = AdHoc(stack)
    jobs.install()
    return jobs


@pytest.fixture(scope="module")
def jobs(stack: Stack) -> AdHoc:
    """The jobs that show what the executor promises; no container is restarted before a module's first test."""
    jobs = AdHoc(stack, "executor_jobs")
    jobs.install()
    return jobs
