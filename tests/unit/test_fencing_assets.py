"""What a lost execution said of assets and their checks is replaced by the next one's, in every table of Dagster's."""

import pytest
from dagster import AssetCheckKey, AssetKey, DagsterEventType, EventLogEntry
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationPlanned,
)
from dagster._core.event_api import EventLogRecord
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from dagster_stack.errors import Fenced
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.leases import Work
from dagster_stack.timing import STALE_SECS
from tests.unit.holders import Database, any_work, entry, materialization

KINDS = DagsterEventType
#: A tag of those of which Dagster keeps a table.
DAY = "dagster/partition/day"


def materializations(storage: PooledPostgresStorage, key: str) -> list[EventLogRecord]:
    return list(storage.event_log_storage.fetch_materializations(AssetKey(key), limit=10).records)


def test_what_a_lost_execution_said_of_assets_is_replaced_and_not_repeated(database: Database) -> None:
    # Given an execution that has made one asset of two, and was lost
    work, lost, second = any_work(), database.process(), database.process()
    one, two = f"one of {work.run_id}", f"two of {work.run_id}"
    with lost.event_log_storage.holding(database.taken(work, "a")):
        lost.event_log_storage.store_event(
            materialization(work.run_id, one, metadata={"rows": 1}, tags={DAY: "monday"})
        )
    database.silence(work, STALE_SECS + 1)
    # When the next one makes both
    with second.event_log_storage.holding(database.taken(work, "b")):
        for key in (one, two):
            second.event_log_storage.store_event(
                materialization(work.run_id, key, metadata={"rows": 2}, tags={DAY: "monday"})
            )
    # Then each was made once, as the second one says
    for key in (one, two):
        (record,) = materializations(second, key)
        assert record.asset_materialization
        assert record.asset_materialization.metadata["rows"].value == 2
        asset = next(iter(second.event_log_storage.get_asset_records([AssetKey(key)])))
        last = asset.asset_entry.last_materialization_record
        assert last
        assert last.storage_id == record.storage_id
        assert last.asset_materialization == record.asset_materialization
        tags = second.event_log_storage.get_event_tags_for_asset(AssetKey(key))
        assert tags == [{DAY: "monday"}]
        # A row each: what reads the table joins with it
        count = "SELECT count(*) FROM asset_event_tags WHERE asset_key = :key"
        assert database.execute(count, key=AssetKey(key).to_string())[0][0] == 1


def test_what_one_execution_says_twice_of_an_asset_counts_twice(database: Database) -> None:
    """As in Dagster: an op may log what it makes as often as it likes. A lost one's reports are replaced in turn."""
    work, lost, second = any_work(), database.process(), database.process()
    key = f"asset of {work.run_id}"
    with lost.event_log_storage.holding(database.taken(work, "a")):
        for _ in range(2):
            lost.event_log_storage.store_event(materialization(work.run_id, key))
    database.silence(work, STALE_SECS + 1)

    with second.event_log_storage.holding(database.taken(work, "b")):
        for _ in range(3):
            second.event_log_storage.store_event(materialization(work.run_id, key))

    assert len(materializations(second, key)) == 3


def test_partitions_of_a_lost_execution_are_replaced_each_by_its_own(database: Database) -> None:
    work, lost, second = any_work(), database.process(), database.process()
    key = f"asset of {work.run_id}"
    for storage, holder, partitions in ((lost, "a", "xy"), (second, "b", "yxz")):
        with storage.event_log_storage.holding(database.taken(work, holder)):
            for partition in partitions:
                storage.event_log_storage.store_event(
                    materialization(work.run_id, key, partition=partition, metadata={"by": holder})
                )
        database.silence(work, STALE_SECS + 1)

    counts = second.event_log_storage.get_materialized_partitions(AssetKey(key))
    made = {record.partition_key: record for record in materializations(second, key)}
    assert counts == set(made) == set("xyz")
    assert len(materializations(second, key)) == 3
    assert all(each.asset_materialization.metadata["by"].value == "b" for each in made.values())  # type: ignore[union-attr]


def test_what_an_earlier_attempt_said_of_an_asset_stays(database: Database) -> None:
    """An attempt that failed and was tried again did end, as in every executor."""
    first = any_work()
    second = Work(first.run_id, first.step_key, 2)
    key = f"asset of {first.run_id}"
    storage = database.process().event_log_storage
    with storage.holding(database.taken(first, "a")):
        storage.store_event(materialization(first.run_id, key))
        storage.store_event(entry(first.run_id, KINDS.STEP_UP_FOR_RETRY))
    # Of the second attempt one execution is lost
    for holder in "bc":
        with storage.holding(database.taken(second, holder)):
            storage.store_event(materialization(first.run_id, key))
        database.silence(second, STALE_SECS + 1)

    assert len(materializations(database.process(), key)) == 2


# --- many at once ------------------------------------------------------------------------------------------------------------


def two_materializations(run_id: str, by: str) -> list[EventLogEntry]:
    """What Dagster hands over together with DAGSTER_EVENT_BATCH_SIZE."""
    return [materialization(run_id, f"{name} of {run_id}", metadata={"by": by}) for name in ("one", "two")]


def test_many_materializations_at_once_are_replaced_each_by_its_own(database: Database) -> None:
    work, lost, second = any_work(), database.process(), database.process()
    for storage, holder in ((lost, "a"), (second, "b")):
        with storage.event_log_storage.holding(database.taken(work, holder)):
            storage.event_log_storage.store_event_batch(two_materializations(work.run_id, holder))
        database.silence(work, STALE_SECS + 1)

    for name in ("one", "two"):
        (record,) = materializations(second, f"{name} of {work.run_id}")
        assert record.asset_materialization
        assert record.asset_materialization.metadata["by"].value == "b"


def test_many_materializations_at_once_of_a_process_that_lost_its_work_are_not_stored(
    database: Database,
) -> None:
    work, paused = any_work(), database.process()
    with paused.event_log_storage.holding(database.taken(work, "a")):
        database.silence(work, STALE_SECS + 1)
        database.taken(work, "b")
        with pytest.raises(Fenced):
            paused.event_log_storage.store_event_batch(two_materializations(work.run_id, "a"))

    assert database.events(work.run_id) == []
    assert materializations(paused, f"one of {work.run_id}") == []


# --- checks of assets -----------------------------------------------------------------------------------------------------


def planned(run_id: str, check: AssetCheckKey) -> EventLogEntry:
    data = AssetCheckEvaluationPlanned(asset_key=check.asset_key, check_name=check.name)
    return entry(run_id, KINDS.ASSET_CHECK_EVALUATION_PLANNED, data=data)


def evaluated(run_id: str, check: AssetCheckKey, passed: bool) -> EventLogEntry:
    data = AssetCheckEvaluation(check.asset_key, check.name, passed, {})
    return entry(run_id, KINDS.ASSET_CHECK_EVALUATION, data=data)


def half_checked(
    database: Database,
) -> tuple[Work, tuple[AssetCheckKey, AssetCheckKey], PooledPostgresStorage]:
    """A step with two checks, of which an execution that is lost has found the first to fail; and the next process."""
    work, lost, second = any_work(), database.process(), database.process()
    asset = AssetKey(f"asset of {work.run_id}")
    done, other = AssetCheckKey(asset, "done"), AssetCheckKey(asset, "other")
    for check in (done, other):
        second.event_log_storage.store_event(planned(work.run_id, check))
    with lost.event_log_storage.holding(database.taken(work, "a")):
        lost.event_log_storage.store_event(evaluated(work.run_id, done, passed=False))
    database.silence(work, STALE_SECS + 1)
    return work, (done, other), second


def test_of_a_check_the_last_executions_result_counts_and_stands_in_the_log_once(database: Database) -> None:
    # Given two checks of one step, of which a lost execution has done one
    work, (done, other), second = half_checked(database)
    # When the next one does both, in another order
    with second.event_log_storage.holding(database.taken(work, "b")):
        for check in (other, done):
            second.event_log_storage.store_event(evaluated(work.run_id, check, passed=True))
    # Then each has passed once
    for check in (done, other):
        (record,) = second.event_log_storage.get_asset_check_execution_history(check, limit=10)
        assert record.status == AssetCheckExecutionRecordStatus.SUCCEEDED
    evaluations = [kind for _, kind in database.events(work.run_id) if kind == "ASSET_CHECK_EVALUATION"]
    assert len(evaluations) == 2


def test_a_check_that_only_the_lost_execution_did_keeps_its_own_event(database: Database) -> None:
    # Given two checks of one step, of which a lost execution has done one
    work, (_, other), second = half_checked(database)
    # When the next one does the other
    with second.event_log_storage.holding(database.taken(work, "b")):
        second.event_log_storage.store_event(evaluated(work.run_id, other, passed=True))
    # Then each result stands in the log
    logs = second.event_log_storage.get_logs_for_run(work.run_id, of_type=KINDS.ASSET_CHECK_EVALUATION)
    results = [log.get_dagster_event().asset_check_evaluation_data for log in logs]
    assert [(result.check_name, result.passed) for result in results] == [("done", False), ("other", True)]
