"""Definitions that are made at import: after a reload nobody takes part in a run with those of before."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon import controller

from dagster_stack import definitions, tags
from dagster_stack.broker.messages import RunMessage
from dagster_stack.errors import OldDefinitions
from dagster_stack.runner.run_execution import execute_run
from dagster_stack.storage.event_log import PooledEventLogStorage
from dagster_stack.worker import replacement
from dagster_stack.worker.step_execution import execute_step
from tests.unit import step_jobs
from tests.unit.deliveries import Delivery, waiting
from tests.unit.runs_by_hand import message, said, started_run

STARTED = DagsterRunStatus.STARTED


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded its code before the first reload, and takes the next task."""
    monkeypatch.setattr(definitions._Process, "loaded_after", 0)
    monkeypatch.setattr(replacement._Process, "is_to_be_replaced", False)


@pytest.fixture
def instance(postgres_instance: DagsterInstance) -> Iterator[DagsterInstance]:
    """Without a reload so far; all tests share its database."""
    storage = postgres_instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    storage.facts.forget(definitions.RELOADS, 0)
    yield postgres_instance
    storage.facts.forget(definitions.RELOADS, 0)


def found(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    found = instance.get_run_by_id(run.run_id)
    assert found
    return found


def launched(instance: DagsterInstance, status: DagsterRunStatus = STARTED) -> DagsterRun:
    """A run with the tags that the launcher gives it now."""
    run: DagsterRun = create_run_for_test(instance, status=status)
    instance.add_run_tags(run.run_id, definitions.new_tags(instance, run))
    return found(instance, run)


def test_before_the_first_reload_no_run_has_a_tag_and_every_process_is_new_enough(
    instance: DagsterInstance,
) -> None:
    run = launched(instance)

    assert tags.DEFINITIONS not in run.tags
    definitions.require(instance, run)


def test_a_run_that_is_launched_after_a_reload_is_refused_by_processes_of_before(
    instance: DagsterInstance,
) -> None:
    before = launched(instance, DagsterRunStatus.SUCCESS)
    definitions.reload(instance)
    after = launched(instance)

    with pytest.raises(OldDefinitions, match="loaded its code before the last reload"):
        definitions.require(instance, after)
    definitions.require(instance, before)
    # And one that loads its code now takes both
    definitions.about_to_load(instance)
    definitions.require(instance, after)
    definitions.require(instance, before)


def test_every_reload_counts(instance: DagsterInstance) -> None:
    for number in (1, 2, 3):
        definitions.reload(instance)
        assert launched(instance).tags[tags.DEFINITIONS] == str(number)


def test_a_run_under_way_goes_on_with_the_new_definitions_and_its_log_says_so(
    instance: DagsterInstance,
) -> None:
    under_way, ended = launched(instance), launched(instance, DagsterRunStatus.SUCCESS)

    definitions.reload(instance)

    assert found(instance, under_way).tags[tags.DEFINITIONS] == "1"
    assert any("Definitions were reloaded" in text for text in said(instance, under_way.run_id))
    assert tags.DEFINITIONS not in found(instance, ended).tags
    assert said(instance, ended.run_id) == []


@pytest.mark.parametrize("forged", ["7", "many", "-1", "²", ""])
def test_a_tag_that_no_reload_has_given_replaces_no_process(instance: DagsterInstance, forged: str) -> None:
    run: DagsterRun = create_run_for_test(instance, status=STARTED, tags={tags.DEFINITIONS: forged})

    definitions.require(instance, run)
    # And the launcher puts it right
    assert definitions.new_tags(instance, run).get(tags.DEFINITIONS, "0") == "0"


def test_a_step_goes_back_to_its_queue_at_once_and_its_process_takes_no_other(
    instance: DagsterInstance, app: Celery
) -> None:
    run = started_run(instance, step_jobs.linear)
    step = message(instance, run, "one")
    definitions.reload(instance)

    with pytest.raises(Reject) as rejected:
        execute_step(Delivery(app), step.to_json())

    assert rejected.value.requeue is True
    assert replacement.is_to_be_replaced()
    assert waiting("dagster.postponed") == []


def test_a_run_goes_back_to_its_queue_at_once_and_its_runners_process_takes_no_other(
    instance: DagsterInstance, app: Celery
) -> None:
    run = started_run(instance, step_jobs.linear, status=DagsterRunStatus.STARTING)
    definitions.reload(instance)

    with pytest.raises(Reject) as rejected:
        execute_run(Delivery(app, queue="runs"), RunMessage(run.run_id, "").to_json())

    assert rejected.value.requeue is True
    assert replacement.is_to_be_replaced()
    assert found(instance, run).status == DagsterRunStatus.STARTING


def test_a_reload_in_dagit_of_one_location_or_of_all_counts_before_the_code_is_loaded(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    names = ("reload_code_location", "reload_workspace")
    for name in names:
        monkeypatch.setattr(
            WorkspaceProcessContext, name, lambda *_: counted.append(definitions.reloads(instance))
        )
    definitions.use_in_webserver()

    for name in names:
        getattr(WorkspaceProcessContext, name)(SimpleNamespace(instance=instance))

    assert counted == [1, 2]


def test_the_daemon_loads_the_code_at_its_next_look_after_a_reload(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def look(_: Any, last: float) -> float:
        looks.append(last)
        return last

    daemon: Any = controller.DagsterDaemonController
    monkeypatch.setattr(daemon, "check_workspace_freshness", look)
    definitions.use_in_daemon()
    this = SimpleNamespace(_instance=instance)

    for reloaded in (False, False, True, False):
        if reloaded:
            definitions.reload(instance)
        daemon.check_workspace_freshness(this, 1000.0)

    assert looks == [1000, 1000, 1000 - controller.RELOAD_WORKSPACE_INTERVAL, 1000]
