"""What Postgres does not take: it fails once, with Postgres's sentence, and takes nothing else with it."""

import random
import string
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from dagster import (
    AssetKey,
    AssetMaterialization,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    EventLogEntry,
    RunsFilter,
    asset,
    materialize,
)
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from sqlalchemy.exc import DBAPIError

from dagster_stack.errors import Refused
from dagster_stack.step.repetition import MOST_EXECUTIONS, MOST_STOPS
from dagster_stack.step.step_execution import execute_step
from dagster_stack.store.leases import STOPPED, Work
from tests.unit import eventful_jobs
from tests.unit.deliveries import Delivery, dead_letters, delayed
from tests.unit.holders import Database, any_work, entry
from tests.unit.runs_by_hand import events, kinds, message, started_run

KINDS = DagsterEventType
#: Compressed it is still longer than an index takes.
LONG = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=8000))


def line(run_id: str, text: str) -> EventLogEntry:
    """A line that user code logs."""
    return entry(run_id, KINDS.STEP_START)._replace(dagster_event=None, user_message=text)


# --- events ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def takes_no_bad_text(database: Database) -> Iterator[None]:
    """A constraint, in place of whatever Postgres may not take one day."""
    database.execute("ALTER TABLE event_logs ADD CONSTRAINT good CHECK (event NOT LIKE '%%bad text%%')")
    yield
    database.execute("ALTER TABLE event_logs DROP CONSTRAINT good")


@pytest.mark.usefixtures("takes_no_bad_text")
@pytest.mark.parametrize("leased", [True, False])
def test_a_line_that_is_refused_is_replaced_and_its_neighbours_are_stored(
    database: Database, leased: bool
) -> None:
    work, storage = any_work(), database.process()
    log = storage.event_log_storage

    def step() -> None:
        with log.batching():
            log.store_event(line(work.run_id, "before"))
            log.store_event(line(work.run_id, "a bad text"))
            log.store_event(line(work.run_id, "after"))
            log.store_event(entry(work.run_id, KINDS.STEP_SUCCESS))

    if leased:
        with log.holding(database.taken(work, "a")):
            step()
    else:
        step()

    stored = [each.user_message for each in log.get_logs_for_run(work.run_id) if not each.dagster_event]
    assert stored[0] == "before"
    assert "could not be stored" in stored[1]
    assert 'violates check constraint "good"' in stored[1]
    assert stored[2] == "after"
    assert [kind for _, kind in database.events(work.run_id)][-1] == "STEP_SUCCESS"


@pytest.mark.usefixtures("takes_no_bad_text")
def test_a_step_whose_event_is_refused_does_not_succeed_and_can_report_why(database: Database) -> None:
    work, storage = any_work(), database.process()
    log = storage.event_log_storage
    with log.holding(database.taken(work, "a")), log.batching():
        log.store_event(entry(work.run_id, KINDS.STEP_START))
        log.store_event(entry(work.run_id, KINDS.STEP_OUTPUT, text="a bad text"))
        log.store_event(entry(work.run_id, KINDS.LOADED_INPUT))
        with pytest.raises(Refused, match='violates check constraint "good"'):
            log.store_event(entry(work.run_id, KINDS.STEP_SUCCESS))
        log.store_event(entry(work.run_id, KINDS.STEP_FAILURE))

    assert [kind for _, kind in database.events(work.run_id)] == [
        "STEP_START",
        "LOADED_INPUT",
        "STEP_FAILURE",
    ]


# --- what a step does -----------------------------------------------------------------------------------------------------


def failures(instance: DagsterInstance, run: DagsterRun) -> list[str]:
    found = [each for each in events(instance, run.run_id) if each.is_step_failure]
    texts = []
    for each in found:
        error = each.step_failure_data.error
        assert error
        texts.append(f"{error} {error.cause}")
    return texts


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda instance, run: instance.add_run_tags(run.run_id, {"long": LONG}), "exceeds btree version"),
        (lambda instance, run: instance.add_dynamic_partitions("days", [LONG]), "exceeds btree version"),
        (
            lambda instance, run: instance.add_dynamic_partitions("files", ["a\udcff"]),
            "surrogates not allowed",
        ),
        (
            lambda instance, run: instance.report_runless_asset_event(AssetMaterialization([LONG])),
            "exceeds btree version",
        ),
        (
            lambda instance, run: instance.report_runless_asset_event(
                AssetMaterialization("orders", partition=LONG)
            ),
            "exceeds btree version",
        ),
    ],
    ids=["run tag", "dynamic partition", "file name", "asset key", "partition"],
)
def test_a_step_that_writes_what_postgres_refuses_fails_once_with_its_sentence(
    instance: DagsterInstance, app: Celery, does: Any, says: str
) -> None:
    run = started_run(instance, eventful_jobs.with_an_event)
    step = message(instance, run, "eventful")
    eventful_jobs.happenings["eventful"] = [lambda _: does(instance, run)]

    execute_step(Delivery(app), step.to_json())

    (told,) = failures(instance, run)
    assert says in told
    assert kinds(instance, run.run_id, "eventful").count("STEP_START") == 1
    assert delayed() == dead_letters() == []


def test_a_run_whose_tags_are_refused_is_not_there_at_all(database: Database) -> None:
    storage, run_id = database.process(), str(uuid4())

    with pytest.raises(DBAPIError, match="exceeds btree version"):
        storage.run_storage.add_run(DagsterRun("a_job", run_id=run_id, tags={"a": "b", "tag": LONG}))

    assert not storage.run_storage.has_run(run_id)


def test_a_backfill_whose_tags_are_refused_is_not_there_at_all(database: Database) -> None:
    storage, backfill_id = database.process(), str(uuid4())[:8]
    backfill = PartitionBackfill(
        backfill_id,
        BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={"nul": "a\0b"},
        backfill_timestamp=1.0,
    )

    with pytest.raises(ValueError, match="NUL"):
        storage.run_storage.add_backfill(backfill)

    assert storage.run_storage.get_backfill(backfill_id) is None


def test_a_run_whose_planned_assets_are_refused_never_starts(instance: DagsterInstance) -> None:
    """It is made, then its plan is reported, then it is submitted: what was made is submitted some day."""

    @asset(key=AssetKey([LONG]))
    def too_long() -> None:
        raise AssertionError("it is executed")

    with pytest.raises(DBAPIError, match="exceeds btree version"):
        materialize([too_long], instance=instance, tags={"test": "planned"})

    assert instance.get_runs(RunsFilter(tags={"test": "planned"})) == []


# --- loops ----------------------------------------------------------------------------------------------------------------


def returned(database: Database, work: Work, reasons: list[str]) -> None:
    for number, reason in enumerate(reasons):
        database.leases.release(database.taken(work, f"worker@{number}"), reason)


def test_a_step_that_comes_to_no_end_again_and_again_fails_and_names_the_last_reasons(
    instance: DagsterInstance, app: Celery, database: Database
) -> None:
    run = started_run(instance, eventful_jobs.with_an_event)
    step = message(instance, run, "eventful")
    returned(database, step.work, [f"reason {number}" for number in range(MOST_EXECUTIONS)])

    execute_step(Delivery(app), step.to_json())

    (told,) = failures(instance, run)
    assert f"It was executed {MOST_EXECUTIONS} times" in told
    assert "worker@7: reason 7; worker@8: reason 8; worker@9: reason 9" in told
    assert "STEP_START" not in kinds(instance, run.run_id, "eventful")


def test_losses_and_returns_count_together(
    instance: DagsterInstance, app: Celery, database: Database
) -> None:
    run = started_run(instance, eventful_jobs.with_an_event)
    step = message(instance, run, "eventful")
    for number in range(2):
        database.taken(step.work, f"lost@{number}")
        database.leases.mark_lost(step.work, f"lost@{number}", "killed by SIGKILL")
    returned(database, step.work, ["without the database"] * (MOST_EXECUTIONS - 2))

    execute_step(Delivery(app), step.to_json())

    assert len(failures(instance, run)) == 1


@pytest.mark.parametrize("times", [MOST_EXECUTIONS, MOST_STOPS - 1])
def test_a_step_whose_workers_are_told_to_stop_often_is_executed_all_the_same(
    instance: DagsterInstance, app: Celery, database: Database, times: int
) -> None:
    run = started_run(instance, eventful_jobs.with_an_event)
    step = message(instance, run, "eventful")
    for number in range(times):
        database.leases.renew(database.taken(step.work, f"worker@{number}"), leaving=True)

    execute_step(Delivery(app), step.to_json())

    assert "STEP_SUCCESS" in kinds(instance, run.run_id, "eventful")
    assert {each.reason for each in database.taken(step.work, "another").before[:times]} == {STOPPED}


def test_a_reason_is_kept_whatever_it_says(database: Database) -> None:
    work = any_work()
    database.leases.release(database.taken(work, "a"), "a\0b \udcff " + "c" * 5000)

    (found,) = database.taken(work, "b").before
    assert found.reason.startswith("a␀b \\udcff ccc")
