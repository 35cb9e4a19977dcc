"""What is under way in a restored database, and what becomes of it."""

import time
from collections.abc import Iterator

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
)
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from dagster_stack.services import restored


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with instance_for_test() as instance:
        yield instance


def schedule(instance: DagsterInstance, name: str, status: InstigatorStatus) -> None:
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="jobs"), "jobs")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    data = ScheduleInstigatorData("0 * * * *", start_timestamp=100.0, last_iteration_timestamp=200.0)
    instance.add_instigator_state(InstigatorState(origin, InstigatorType.SCHEDULE, status, data))


def backfill(instance: DagsterInstance, name: str, status: BulkActionStatus) -> None:
    instance.add_backfill(
        PartitionBackfill(
            name, status, from_failure=False, tags={}, backfill_timestamp=1.0, asset_selection=[], title=name
        )
    )


def test_runs_and_backfills_that_have_not_ended_are_found(instance: DagsterInstance) -> None:
    for status in (DagsterRunStatus.STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.SUCCESS):
        create_run_for_test(instance, job_name=status.value.lower(), status=status)
    backfill(instance, "going", BulkActionStatus.REQUESTED)
    backfill(instance, "gone", BulkActionStatus.COMPLETED_SUCCESS)
    found = restored.found(instance)["under_way"]
    assert {(each["kind"], each["name"]) for each in found} == {
        ("run", "started"),
        ("run", "starting"),
        ("backfill", "going"),
    }


def test_cancel_ends_them_and_leaves_what_has_ended(instance: DagsterInstance) -> None:
    for status in (DagsterRunStatus.STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.SUCCESS):
        create_run_for_test(instance, status=status)
    backfill(instance, "going", BulkActionStatus.REQUESTED)
    assert restored.cancel(instance) == 3
    assert sorted(run.status.value for run in instance.get_runs()) == ["CANCELED", "CANCELED", "SUCCESS"]
    assert restored.found(instance)["under_way"] == []


def test_skip_lets_schedules_that_are_on_begin_from_now(instance: DagsterInstance) -> None:
    schedule(instance, "hourly", InstigatorStatus.RUNNING)
    schedule(instance, "off", InstigatorStatus.STOPPED)
    (found,) = restored.found(instance)["schedules"]
    assert found == {"name": "hourly", "cron": "0 * * * *", "last": 200.0}
    began = time.time()
    assert restored.skip(instance) == 1
    (found,) = restored.found(instance)["schedules"]
    assert isinstance(found["last"], float)
    assert found["last"] >= began
