"""The daemon's sign of life, on a real instance with SQLite."""

import time
from collections.abc import Iterator

import pytest
from dagster import DagsterInstance
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.services.daemon import daemon_complaint


@pytest.fixture
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path_factory.mktemp("instance"))) as instance:
        yield instance


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
