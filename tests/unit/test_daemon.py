"""The daemon's sign of life, on a real instance with SQLite."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._daemon import controller
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.services.daemon import daemon_complaint, leadership_of, start_as_leader


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


# --- several daemons ----------------------------------------------------------------------------------------------


def test_what_a_daemon_does_begins_when_it_leads_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's constructor starts the threads; the code is loaded by then."""
    done: list[str] = []
    daemon: Any = controller.DagsterDaemonController
    monkeypatch.setattr(daemon, "__init__", lambda *_, **__: done.append("threads"))
    leadership: Any = SimpleNamespace(await_lead=lambda _: done.append("waited"))

    start_as_leader(leadership, lambda: done.append("leads"))
    daemon("context", [], grpc_server_registry=None)

    assert done == ["waited", "leads", "threads"]


def test_one_daemon_on_other_storage_than_the_stacks_knows_no_lead(instance: DagsterInstance) -> None:
    assert leadership_of(instance) is None
