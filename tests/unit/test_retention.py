"""What is old goes, in small parts, and no page about assets is another one after it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterEventType, DagsterInstance
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from dagster_stack.retention.freed import Freed
from dagster_stack.retention.outputs import Outputs
from dagster_stack.retention.periods import Periods
from dagster_stack.retention.retention import Retention
from dagster_stack.retention.session import Pace
from tests.unit import old_runs
from tests.unit.conftest import ON_POSTGRES, opened
from tests.unit.holders import Database
from tests.unit.old_runs import FIRST_YOUNG, RUNS
from tests.unit.partitioned_assets import CHECK, NAMES, PARTITIONED
from tests.unit.postgres_server import PostgresServer, forget

KINDS = DagsterEventType


@dataclass
class BucketInMemory:
    """The two requests that retention makes, and what is there."""

    objects: dict[str, int] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def get_paginator(self, _: str) -> "BucketInMemory":
        return self

    def paginate(self, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        yield {"Contents": [{"Key": k, "Size": s} for k, s in self._under(Prefix)]}

    def _under(self, prefix: str) -> list[tuple[str, int]]:
        # A look into all objects would take a minute for 10,000 runs.
        names = (f"{prefix}{rest}" for rest in ("step/result", "kept/result", "compute_logs/a.out"))
        return [(name, self.objects[name]) for name in names if name in self.objects]

    def delete_object(self, Bucket: str, Key: str) -> None:
        self.deleted.append(Key)
        self.objects.pop(Key, None)


USERS = {
    "storage/@assets/asset_1.pickle": 5,
    "inbox/run_1/step/result": 6,
    "storage/storage/run_1x/step/result": 7,
}


def bucket_of_old_runs() -> BucketInMemory:
    names = [f"run_{number}" for number in range(1, RUNS + 1)]
    objects = {f"storage/storage/{name}/{each}/result": 100 for name in names for each in ("step", "kept")}
    logs = {f"logs/storage/{name}/compute_logs/a.out": 10 for name in names}
    return BucketInMemory({**objects, **logs, **USERS})


@pytest.fixture(scope="module")
def template(postgres: PostgresServer) -> Iterator[str]:
    """The name of a database with the old runs, to be copied."""
    with postgres.database() as url:
        old_runs.store(Database(url))
        name = url.rpartition("?")[0].rpartition("/")[2]
        forget(url)
        yield name


@pytest.fixture
def old(postgres: PostgresServer, template: str) -> Iterator[Database]:
    with postgres.copy(template) as url:
        yield Database(url)


@pytest.fixture
def old_instance(old: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterInstance]:
    with opened(tmp_path_factory.mktemp("dagster_home"), ON_POSTGRES.format(url=old.url)) as instance:
        yield instance


def retention(
    database: Database, bucket: BucketInMemory | None = None, details: int = 30, runs: int = 365
) -> Retention:
    outputs = Outputs(bucket or BucketInMemory(), "bucket", "storage", "logs")
    return Retention(database.engine, outputs, Periods(details, runs), Pace(lambda seconds: None))


def page(instance: DagsterInstance, name: str) -> dict[str, Any]:
    """All that pages about an asset, its partitions and its check ask for."""
    log, key, check = instance.event_log_storage, AssetKey(name), AssetCheckKey(AssetKey(name), CHECK)
    log.wipe_asset_cached_status(key)
    (record,) = log.get_asset_records([key])
    status = get_and_update_asset_status_cache_value(instance, key, PARTITIONED)
    assert status
    partitions = PARTITIONED.get_partition_keys()
    return {
        "asset": record.asset_entry,
        "run": record.asset_entry.last_run_id and instance.get_run_by_id(record.asset_entry.last_run_id),
        "latest": log.get_latest_materialization_events([key]),
        "partitions": log.get_materialized_partitions(key),
        "ids": [
            log.get_latest_storage_id_by_partition(key, kind)
            for kind in (KINDS.ASSET_MATERIALIZATION, KINDS.ASSET_OBSERVATION)
        ],
        "tags": log.get_latest_tags_by_partition(key, KINDS.ASSET_MATERIALIZATION, ["dagster/data_version"]),
        "attempts": {
            partition: (run, number)
            for partition, (
                run,
                number,
            ) in log.get_latest_asset_partition_materialization_attempts_without_materializations(key).items()
        },
        "planned": [log.get_latest_planned_materialization_info(key, each) for each in (None, *partitions)],
        "of each": [
            instance.fetch_materializations(AssetRecordsFilter(key, asset_partitions=[each]), limit=1).records
            for each in partitions
        ],
        "status": status,
        "materialized": status.deserialize_materialized_partition_subsets(PARTITIONED),
        "failed": status.deserialize_failed_partition_subsets(PARTITIONED),
        "in progress": status.deserialize_in_progress_partition_subsets(PARTITIONED),
        "check": log.get_latest_asset_check_execution_by_key([check]),
        "check summary": log.get_asset_check_summary_records([check]),
        "check partitions": log.get_asset_check_partition_info([check]),
    }


def pages(instance: DagsterInstance) -> dict[str, dict[str, Any]]:
    return {name: page(instance, name) for name in NAMES}


def runs_of(database: Database) -> set[int]:
    return {int(row[0].removeprefix("run_")) for row in database.execute("SELECT run_id FROM runs")}


TABLES = ("runs", "run_tags", "event_logs", "asset_event_tags", "asset_check_executions", "snapshots",
          "bulk_actions", "backfill_tags", "dagster_stack_claims")  # fmt: skip


def rows_of(database: Database) -> dict[str, int]:
    """A hash over the rows of each table."""
    return {
        table: database.execute(
            f"SELECT sum(hashtextextended(CAST(t AS text), 0)), count(*) FROM {table} AS t"
        )[0]
        for table in TABLES
    }


def test_every_asset_page_is_the_same_after(old: Database, old_instance: DagsterInstance) -> None:
    before, bucket = pages(old_instance), bucket_of_old_runs()
    began = time.monotonic()
    freed = retention(old, bucket).run()
    assert freed
    print(freed, f"in {time.monotonic() - began:.1f} s")

    # Then most of what is old is gone, and nothing else
    left = runs_of(old)
    assert freed.runs == RUNS - len(left) > 8000
    assert set(range(FIRST_YOUNG, RUNS + 1)) <= left
    # And no page is another one
    after = pages(old_instance)
    for name in NAMES:
        for part, value in before[name].items():
            assert after[name][part] == value, f"{part} of {name}"
    # Some partitions of which were made by runs that are gone
    made_by = {
        int(records[0].run_id.removeprefix("run_"))
        for each in after.values() for records in each["of each"] if records
    }  # fmt: skip
    assert made_by - left
    # And objects of the user's, of what is kept, and of runs that are left
    assert bucket.objects.items() >= USERS.items()
    for number in made_by:
        assert f"storage/storage/run_{number}/kept/result" in bucket.objects
    gone = set(range(1, RUNS + 1)) - left
    for number in gone:
        assert f"storage/storage/run_{number}/step/result" not in bucket.objects
        assert f"logs/storage/run_{number}/compute_logs/a.out" not in bucket.objects
    for number in left:
        assert f"storage/storage/run_{number}/step/result" in bucket.objects
    # Nothing of the others is left over
    for table in ("run_tags", "dagster_stack_claims"):
        assert not old.execute(f"SELECT FROM {table} WHERE NOT run_id IN (SELECT run_id FROM runs)")
    orphans = "SELECT FROM asset_event_tags WHERE NOT event_id IN (SELECT id FROM event_logs)"
    assert not old.execute(orphans)
    (checks,) = old.execute(
        "SELECT count(*) FROM asset_check_executions WHERE NOT run_id IN (SELECT run_id FROM runs)"
    )
    assert checks[0] <= 2 * len(NAMES)


def test_groups_go_as_a_whole_or_stay(old: Database) -> None:
    retention(old).run()

    left = runs_of(old)
    assert not {7, 1507} & left
    assert {507, 9507} <= left
    assert not set(old_runs.BACKFILLS["all_old"][1]) & left - wanted(old)
    assert set(old_runs.BACKFILLS["partly_young"][1]) <= left
    assert set(old_runs.BACKFILLS["open"][1]) <= left
    assert set(old_runs.UNDER_WAY) <= left
    assert {row[0] for row in old.execute("SELECT key FROM bulk_actions")} == {"partly_young", "open"}
    assert {row[0] for row in old.execute("SELECT backfill_id FROM backfill_tags")} == {
        "partly_young",
        "open",
    }


def wanted(database: Database) -> set[int]:
    return {
        int(row[0].removeprefix("run_")) for row in database.execute("SELECT last_run_id FROM asset_keys")
    }


def test_snapshots_go_that_only_removed_runs_had(old: Database) -> None:
    freed = retention(old).run()
    assert freed
    assert freed.snapshots == 2
    assert {row[0] for row in old.execute("SELECT snapshot_id FROM snapshots")} == {
        "job_of_young",
        old_runs.PLAN,
    }


def test_details_of_ended_runs_go_alone(old: Database) -> None:
    before = dict(old.execute("SELECT dagster_event_type, count(*) FROM event_logs GROUP BY 1"))
    freed = retention(old, details=400, runs=0).run()
    assert freed

    after = dict(old.execute("SELECT dagster_event_type, count(*) FROM event_logs GROUP BY 1"))
    changed = {kind for kind in before if before[kind] != after[kind]}
    assert changed == {"ENGINE_EVENT", "STEP_WORKER_STARTING", None}
    assert sum(before.values()) - sum(after.values()) == freed.rows == 3 * (8000 - len(old_runs.UNDER_WAY))
    assert runs_of(old) == set(range(1, RUNS + 1))


def test_nothing_goes_with_0(old: Database) -> None:
    before, bucket = rows_of(old), bucket_of_old_runs()
    assert retention(old, bucket, 0, 0).run() == Freed()
    assert rows_of(old) == before
    assert not bucket.deleted


def test_a_look_beforehand_says_what_would_go_and_changes_nothing(old: Database) -> None:
    before, bucket = rows_of(old), bucket_of_old_runs()
    told = retention(old, bucket).count()
    assert rows_of(old) == before
    assert not bucket.deleted

    freed = retention(old, bucket).run()
    assert freed
    assert (told.runs, told.objects, told.object_bytes) == (freed.runs, freed.objects, freed.object_bytes)
    assert 0.8 * freed.rows < told.rows <= freed.rows
