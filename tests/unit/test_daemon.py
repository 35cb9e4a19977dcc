"""What the daemon does with the runs of its predecessor, on a real instance with SQLite."""

import time
from collections.abc import Iterator

import pytest
from dagster import DagsterInstance, DagsterRunStatus, job, op
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.services.daemon import daemon_complaint, end_lost_runs

#: What the default launcher tags a run with that it gives to a process of its own.
DRIVEN_HERE = {GRPC_INFO_TAG: '{"socket": "/tmp/x"}'}


@op
def nothing() -> None: ...


@job
def a_job() -> None:
    nothing()


@pytest.fixture
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path_factory.mktemp("instance"))) as instance:
        yield instance


def run(instance: DagsterInstance, status: DagsterRunStatus, tags: dict[str, str]) -> str:
    return instance.create_run_for_job(a_job, status=status, tags=tags).run_id


def status(instance: DagsterInstance, run_id: str) -> DagsterRunStatus:
    found = instance.get_run_by_id(run_id)
    assert found
    return found.status


def messages(instance: DagsterInstance, run_id: str) -> str:
    return " ".join(
        entry.message or str(entry.dagster_event and entry.dagster_event.message)
        for entry in instance.all_logs(run_id)
    )


@pytest.mark.parametrize("before", [DagsterRunStatus.STARTED, DagsterRunStatus.STARTING])
def test_a_run_whose_process_ended_with_the_daemon_fails_with_that_reason(
    instance: DagsterInstance, before: DagsterRunStatus
) -> None:
    run_id = run(instance, before, DRIVEN_HERE)

    assert end_lost_runs(instance) == 1

    assert status(instance, run_id) == DagsterRunStatus.FAILURE
    assert "The process of this run ended with the daemon that drove it" in messages(instance, run_id)
    assert "run_retries in dagster.yaml" in messages(instance, run_id)


def test_a_run_that_was_being_canceled_is_canceled_and_not_failed(instance: DagsterInstance) -> None:
    """As a failure it would be retried, though somebody wanted it to end."""
    run_id = run(instance, DagsterRunStatus.CANCELING, DRIVEN_HERE)

    assert end_lost_runs(instance) == 1

    assert status(instance, run_id) == DagsterRunStatus.CANCELED
    assert "The daemon restarted while this run was being canceled" in messages(instance, run_id)


def test_a_run_that_somebody_started_by_hand_elsewhere_is_left_alone(instance: DagsterInstance) -> None:
    run_id = run(instance, DagsterRunStatus.STARTED, {})

    assert end_lost_runs(instance) == 0
    assert status(instance, run_id) == DagsterRunStatus.STARTED


@pytest.mark.parametrize(
    "before",
    [
        DagsterRunStatus.NOT_STARTED,
        DagsterRunStatus.SUCCESS,
        DagsterRunStatus.FAILURE,
        DagsterRunStatus.CANCELED,
    ],
)
def test_a_run_that_has_not_started_or_has_ended_is_left_alone(
    instance: DagsterInstance, before: DagsterRunStatus
) -> None:
    run_id = run(instance, before, DRIVEN_HERE)

    assert end_lost_runs(instance) == 0
    assert status(instance, run_id) == before


def test_all_lost_runs_are_ended_and_a_second_look_finds_none(instance: DagsterInstance) -> None:
    lost = [run(instance, DagsterRunStatus.STARTED, DRIVEN_HERE) for _ in range(3)]

    assert end_lost_runs(instance) == 3
    assert end_lost_runs(instance) == 0

    assert {status(instance, run_id) for run_id in lost} == {DagsterRunStatus.FAILURE}


# --- the sign of life -----------------------------------------------------------------------------------------


def beat(
    instance: DagsterInstance, seconds_ago: float = 0, but: str | None = None, error: bool = False
) -> None:
    errors = [SerializableErrorInfo("a user's sensor failed", [], None)] if error else []
    for name in instance.get_required_daemon_types():
        if name != but:
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, name, "id", errors))


def test_daemons_that_all_beat_are_well(instance: DagsterInstance) -> None:
    beat(instance)

    assert daemon_complaint(instance) is None


def test_a_daemon_that_never_beat_is_named(instance: DagsterInstance) -> None:
    beat(instance, but="SENSOR")

    assert daemon_complaint(instance) == "no heartbeat of SENSOR"


def test_daemons_that_fell_silent_are_named(instance: DagsterInstance) -> None:
    beat(instance, seconds_ago=600)

    complaint = daemon_complaint(instance)
    assert complaint is not None
    assert complaint.startswith("no heartbeat of ")
    assert set(complaint.removeprefix("no heartbeat of ").split(", ")) == set(
        instance.get_required_daemon_types()
    )


def test_a_users_failed_sensor_does_not_make_the_daemon_unwell(instance: DagsterInstance) -> None:
    beat(instance, error=True)

    assert daemon_complaint(instance) is None
