"""Definitions that are made at import: after a reload nobody takes part in a run with those of before."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from dagster import (
    AssetCheckKey,
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    JobDefinition,
    job,
    op,
)
from dagster._core.snap import JobSnap
from dagster._core.snap.job_snapshot import JobLineageSnap
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon import controller
from dagster_shared.record import copy

from dagster_stack import definitions, tags
from dagster_stack.errors import OldDefinitions
from dagster_stack.messaging.messages import RunMessage
from dagster_stack.pool import replacement
from dagster_stack.run.run_execution import execute_run
from dagster_stack.step.step_execution import execute_step
from dagster_stack.store.event_log import PooledEventLogStorage
from tests.unit import step_jobs
from tests.unit.deliveries import Delivery, waiting
from tests.unit.runs_by_hand import message, said, started_run

STARTED = DagsterRunStatus.STARTED


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded its code before the first reload, and takes the next task."""
    monkeypatch.setattr(definitions._Process, "loaded_after", 0)
    monkeypatch.setattr(definitions._Process, "loaded_at", time.time())
    monkeypatch.setattr(definitions._Process, "compared", set())
    monkeypatch.setattr(replacement._Process, "is_to_be_replaced", False)


@pytest.fixture
def instance(instance: DagsterInstance) -> Iterator[DagsterInstance]:
    """Without a reload so far; all tests share its database."""
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    for facts in (definitions.RELOADS, definitions.DIFFERS):
        storage.facts.forget(facts, 0)
    yield instance
    for facts in (definitions.RELOADS, definitions.DIFFERS):
        storage.facts.forget(facts, 0)


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
    assert waiting("dagster.delayed") == []


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


def with_op(name: str) -> JobDefinition:
    """What code makes of a file when it is imported."""

    @op(name=name)
    def one() -> None: ...

    @job(name="made_at_import")
    def made() -> None:
        one()

    return made


def of(instance: DagsterInstance, definition: JobDefinition) -> DagsterRun:
    return instance.create_run_for_job(definition, status=STARTED)


def test_a_process_with_the_runs_own_definition_is_asked_once(instance: DagsterInstance) -> None:
    loads: list[JobDefinition] = []

    def load() -> JobDefinition:
        loads.append(with_op("a"))
        return loads[-1]

    for _ in range(2):
        definitions.compare(instance, of(instance, with_op("a")), load)

    assert len(loads) == 1


def test_what_changed_without_a_reload_replaces_processes_of_before_the_launch(
    instance: DagsterInstance,
) -> None:
    """As when Dagit alone was restarted, and has found another file than the workers."""
    run = of(instance, with_op("b"))

    with pytest.raises(OldDefinitions, match="another definition of made_at_import"):
        definitions.compare(instance, run, lambda: with_op("a"))


def test_where_dagit_has_the_older_definitions_the_log_says_so_once_and_no_process_is_replaced(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, later = of(instance, with_op("a")), of(instance, with_op("a"))
    # Given a process that has loaded its code since
    monkeypatch.setattr(definitions._Process, "loaded_at", time.time() + 1)
    definitions.compare(instance, run, lambda: with_op("b"))
    # And another one of before
    monkeypatch.setattr(definitions._Process, "loaded_at", 0.0)
    monkeypatch.setattr(definitions._Process, "compared", set())
    definitions.compare(instance, later, lambda: with_op("c"))

    (text,) = said(instance, run.run_id)
    assert "made_at_import has changed since this run was launched" in text
    assert "make reload" in text
    assert said(instance, later.run_id) == []


def test_how_a_part_of_a_job_was_selected_makes_no_other_definition(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagit says all that it selected, a worker what it was asked for."""
    definition = with_op("a")
    whole = definition.get_job_snapshot()

    def selected(checks: list[AssetCheckKey] | None) -> JobSnap:
        lineage = JobLineageSnap(
            parent_snapshot_id=whole.snapshot_id,
            asset_selection={AssetKey("x")},
            asset_check_selection=set(checks) if checks is not None else None,
        )
        return copy(whole, lineage_snapshot=lineage)

    run = instance.create_run_for_job(definition, status=STARTED)
    instance.run_storage.add_job_snapshot(asked := selected([]))
    run = copy(run, job_snapshot_id=asked.snapshot_id)
    monkeypatch.setattr(JobDefinition, "get_job_snapshot", lambda _: selected(None))

    definitions.compare(instance, run, lambda: definition)

    assert said(instance, run.run_id) == []
    assert asked.snapshot_id in definitions._Process.compared


def test_code_that_can_not_be_loaded_is_told_by_whoever_executes_it(instance: DagsterInstance) -> None:
    def load() -> JobDefinition:
        raise ImportError

    definitions.compare(instance, of(instance, with_op("a")), load)


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
