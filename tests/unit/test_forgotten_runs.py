"""What the daemon does for runs that nobody looks after. The rest of it is seen in tests/faults."""

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test

from dagster_stack.launch import run_watch
from dagster_stack.launch.run_watch import RunWatch

ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("drills"), "__repository__"), "load"
)


@pytest.mark.parametrize(
    ("age", "origin", "status"),
    [
        # A backfill's run, and the daemon that made it is dead.
        (-1, ORIGIN, DagsterRunStatus.QUEUED),
        # Whoever made it is about to submit it.
        (60, ORIGIN, DagsterRunStatus.NOT_STARTED),
        # `dagster job execute`.
        (-1, None, DagsterRunStatus.NOT_STARTED),
    ],
)
def test_a_run_that_was_made_and_never_submitted_is_submitted(
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    age: float,
    origin: RemoteJobOrigin | None,
    status: DagsterRunStatus,
) -> None:
    monkeypatch.setattr(run_watch, "FORGOTTEN_SECS", age)
    run = create_run_for_test(instance, job_name="load", remote_job_origin=origin)

    RunWatch(instance)._submit_forgotten()

    found = instance.get_run_by_id(run.run_id)
    assert found
    assert found.status == status
