"""What is old goes, in small parts, and no page about assets is another one after it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    ReexecutionOptions,
    execute_job,
    reconstructable,
)
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget
from dagster_graphql.schema import create_schema

from dagster_stack.errors import RunDoomed
from dagster_stack.objects.client import s3_client
from dagster_stack.retention import removal, snapshots
from dagster_stack.retention import retention as retention_module
from dagster_stack.retention.details import KINDS
from dagster_stack.retention.freed import Freed
from dagster_stack.retention.groups import doom
from dagster_stack.retention.outputs import Outputs
from dagster_stack.retention.periods import Periods
from dagster_stack.retention.retention import DAY_SECS, Retention
from dagster_stack.retention.session import Pace, alone
from dagster_stack.store.connections import pooled_engine
from tests.unit import old_runs, partitioned_assets, runs_by_hand, step_jobs
from tests.unit.conftest import ON_POSTGRES, opened
from tests.unit.driven_runs import Workers, executed
from tests.unit.holders import Database
from tests.unit.old_runs import FIRST_YOUNG, RUNS
from tests.unit.partitioned_assets import CHECK, NAMES, PARTITIONED
from tests.unit.postgres_server import PostgresServer, forget
from tests.unit.seaweed import BUCKET
from tests.waiting import wait_until


@dataclass
class BucketInMemory:
    """The two requests that retention makes, and what is there."""

    objects: dict[str, int] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def get_paginator(self, _: str) -> "BucketInMemory":
        return self

    def paginate(self, **named: str) -> Iterator[dict[str, Any]]:
        yield {"Contents": [{"Key": key, "Size": size} for key, size in self._under(named["Prefix"])]}

    def _under(self, prefix: str) -> list[tuple[str, int]]:
        # A look into all objects would take a minute for 10,000 runs.
        names = (f"{prefix}{rest}" for rest in ("step/result", "kept/result", "compute_logs/a.out"))
        return [(name, self.objects[name]) for name in names if name in self.objects]

    def delete_object(self, **named: str) -> None:
        self.deleted.append(named["Key"])
        self.objects.pop(named["Key"], None)


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
        forget(url)
        yield url.rpartition("?")[0].rpartition("/")[2]


@pytest.fixture(scope="module")
def few(postgres: PostgresServer) -> Iterator[str]:
    """The same with the first 600 runs alone."""
    with postgres.database() as url:
        old_runs.store(Database(url), 600)
        forget(url)
        yield url.rpartition("?")[0].rpartition("/")[2]


@pytest.fixture
def few_database(postgres: PostgresServer, few: str) -> Iterator[Database]:
    with postgres.copy(few) as url:
        yield Database(url)


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
            for kind in (DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_OBSERVATION)
        ],
        "tags": log.get_latest_tags_by_partition(
            key, DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
        ),
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


class Crash(BaseException):
    """The end of the process, as its code sees it."""


#: The ends of phases, and what is within them, by what is called then.
PHASES = {
    "before anything is doomed": ("retention.doom", "before"),
    "doomed": ("retention.doom", "after"),
    "objects half gone": ("outputs", "half"),
    "objects gone": ("removal.Removal._remove_rows", "before"),
    "rows half gone": ("rows", "half"),
    "rows gone": ("removal.Removal._remove_rows", "after"),
    "before snapshots": ("snapshots.Snapshots.remove", "before"),
    "snapshots gone": ("snapshots.Snapshots.remove", "after"),
    "before details": ("retention.remove_details", "before"),
}


def crash_at(monkeypatch: pytest.MonkeyPatch, bucket: BucketInMemory, phase: str) -> None:
    """End the next pass in a phase, at the third time that it comes to it, if it does so often."""
    where, when = PHASES[phase]
    count = 0 if "snapshots" in phase or "details" in phase else 3

    def crash() -> None:
        nonlocal count
        count -= 1
        if count <= 0:
            raise Crash

    def crashing(act: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if when == "before":
                crash()
            result = act(*arguments, **named)
            if when == "after":
                crash()
            return result

        return called

    if where == "outputs":
        monkeypatch.setattr(bucket, "delete_object", halfway(bucket.delete_object, crash))
    elif where == "rows":
        monkeypatch.setattr(removal, "DELETE", Halfway(removal.DELETE, crash))
    else:
        module, _, name = where.partition(".")
        owner = {"retention": retention_module, "removal": removal, "snapshots": snapshots}[module]
        holder, _, attribute = name.rpartition(".")
        target = getattr(owner, holder) if holder else owner
        monkeypatch.setattr(target, attribute, crashing(getattr(target, attribute)))


def halfway(act: Callable[..., Any], crash: Callable[[], None]) -> Callable[..., Any]:
    def called(**named: Any) -> None:
        act(**named)
        crash()

    return called


class Halfway(list[Any]):
    """Statements after the first of which the process ends."""

    def __init__(self, statements: list[Any], crash: Callable[[], None]) -> None:
        super().__init__(statements)
        self._crash = crash

    def __iter__(self) -> Iterator[Any]:
        first, *others = super().__iter__()
        yield first
        self._crash()
        yield from others


@pytest.fixture(scope="module")
def end_state(postgres: PostgresServer, few: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Rows and objects after one pass over the few runs."""
    bucket = bucket_of_old_runs()
    with postgres.copy(few) as url:
        retention(Database(url), bucket).run()
        return rows_of(Database(url)), bucket.objects


@pytest.mark.parametrize("phase", PHASES)
def test_a_pass_that_ends_anywhere_is_repeated(
    phase: str,
    postgres: PostgresServer,
    few: str,
    end_state: tuple[dict[str, Any], dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = bucket_of_old_runs()
    with postgres.copy(few) as url:
        database = Database(url)
        with monkeypatch.context() as patch:
            crash_at(patch, bucket, phase)
            with pytest.raises(Crash):
                retention(database, bucket).run()
        # Then a run is there with all of its rows, or it is not there
        whole = """
            SELECT run_id FROM runs WHERE NOT run_id IN (SELECT run_id FROM dagster_stack_claims)
                OR (SELECT count(*) FROM event_logs WHERE event_logs.run_id = runs.run_id) < 8
        """
        assert not database.execute(whole)
        # And one whose objects are gone can't be executed again
        for (run,) in database.execute("SELECT run_id FROM runs"):
            if f"storage/storage/{run}/step/result" not in bucket.objects:
                assert database.execute("SELECT 1 FROM dagster_stack_doomed WHERE run_id = :run", run=run)
        retention(database, bucket).run()
        assert (rows_of(database), bucket.objects) == end_state


def test_two_at_once_one_leaves_it_to_the_other(few_database: Database) -> None:
    with alone(few_database.engine) as connection:
        assert connection
        before = rows_of(few_database)
        assert retention(few_database).run() is None
        assert rows_of(few_database) == before
    assert retention(few_database).run()


def test_one_that_waits_begins_when_the_other_has_ended(few_database: Database) -> None:
    with ThreadPoolExecutor() as threads:
        with alone(few_database.engine) as connection:
            assert connection
            second = retention(few_database)
            second.engine = pooled_engine(few_database.url, 3)
            other = threads.submit(second.run, wait=True)
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'advisory'"
            wait_until(lambda: bool(few_database.execute(waiting)), 20, "the other one waits")
            assert not other.done()
        assert other.result(20)


def test_a_run_can_not_follow_on_one_that_is_doomed(few_database: Database) -> None:
    """Some of its outputs are gone, and it is still to be seen."""
    with few_database.engine.connect() as connection:
        assert doom(connection, ["run_1"], time.time() - 365 * DAY_SECS) == ["run_1"]
    for tag in ("dagster/parent_run_id", "dagster/root_run_id"):
        with pytest.raises(RunDoomed, match=r"KEEP_RUNS_DAYS.*Launch the job anew"):
            few_database.run(tags={tag: "run_1"})
        few_database.run(tags={tag: "run_2"})


def test_a_run_that_is_executed_again_before_it_is_doomed_stays(few_database: Database) -> None:
    few_database.run(tags={"dagster/root_run_id": "run_1"})
    with few_database.engine.connect() as connection:
        assert doom(connection, ["run_1", "run_2"], time.time() - 365 * DAY_SECS) == ["run_2"]


def test_what_was_the_latest_goes_when_something_newer_came(few_database: Database) -> None:
    # Given an event that stayed as the latest of its partition
    retention(few_database).run()
    left = "SELECT id, run_id, event FROM event_logs WHERE run_id = :run"
    (run,) = few_database.execute(
        "SELECT run_id FROM event_logs WHERE NOT run_id IN (SELECT run_id FROM runs)"
        " AND dagster_event_type = 'ASSET_MATERIALIZATION' LIMIT 1"
    )[0]
    assert few_database.execute(left, run=run)
    # When its partition is made again, and a day goes by
    few_database.execute(
        "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, asset_key, partition)"
        " SELECT 'run_new', event, dagster_event_type, now(), asset_key, partition FROM event_logs WHERE run_id = :run",
        run=run,
    )
    few_database.execute("UPDATE dagster_stack_doomed SET checked_at = now() - interval '2 days'")
    retention(few_database).run()
    # Then it is gone, and a week later nothing remembers the run
    assert not few_database.execute(left, run=run)
    few_database.execute(
        "UPDATE dagster_stack_doomed SET gone_at = now() - interval '8 days', checked_at = now() - interval '2 days'"
    )
    retention(few_database).run()
    remembered = {row[0] for row in few_database.execute("SELECT run_id FROM dagster_stack_doomed")}
    assert run not in remembered
    assert remembered == {
        row[0]
        for row in few_database.execute(
            "SELECT DISTINCT run_id FROM event_logs WHERE NOT run_id IN (SELECT run_id FROM runs) AND run_id != 'run_new'"
        )
    }


PAGE = """
query Page($asset: AssetKeyInput!) {
  assetNodeOrError(assetKey: $asset) { ... on AssetNode {
    partitionStats { numMaterialized numFailed numMaterializing numPartitions }
    latestMaterializationByPartition { timestamp runId partition tags { key value } stepStats { status }
      runOrError { __typename } metadataEntries { label ... on TextMetadataEntry { text } } }
    assetMaterializations(limit: 1) { timestamp runId runOrError { __typename } }
    assetPartitionStatuses { ... on DefaultPartitionStatuses {
      materializedPartitions failedPartitions materializingPartitions unmaterializedPartitions } }
    assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization {
      status runId timestamp evaluation { success } } } } }
  } }
  assetsLatestInfo(assetKeys: [$asset]) { latestRun { id status } latestMaterialization { runId timestamp } }
  assetOrError(assetKey: $asset) { ... on Asset {
    assetMaterializations(limit: 200) { runId partition runOrError { __typename ... on Run { status } } } } }
}
"""


@pytest.fixture
def dagit(old_instance: DagsterInstance) -> Iterator[Callable[[str], dict[str, Any]]]:
    """What Dagit answers about an asset of the definitions."""
    target = PythonFileTarget(
        partitioned_assets.__file__, attribute=None, working_directory=None, location_name="here"
    )
    schema = create_schema()
    with WorkspaceProcessContext(old_instance, target) as process:

        def asked(name: str) -> dict[str, Any]:
            old_instance.event_log_storage.wipe_asset_cached_status(AssetKey(name))
            context = process.create_request_context()
            asset = {"asset": {"path": [name]}}
            result = asyncio.run(schema.execute_async(PAGE, context_value=context, variable_values=asset))
            assert not result.errors, result.errors
            return cast(dict[str, Any], result.data)

        yield asked


def test_dagit_shows_the_same_of_each_asset(old: Database, dagit: Callable[[str], dict[str, Any]]) -> None:
    before = {name: dagit(name) for name in NAMES}
    retention(old).run()
    found = Counter[str]()
    for name in NAMES:
        after = dagit(name)
        for each in (before[name], after):
            # What becomes of the run of something that stayed: it is not found.
            for made in each["assetNodeOrError"]["latestMaterializationByPartition"]:
                if made:
                    found[made.pop("runOrError")["__typename"]] += 1
                    made.pop("stepStats")
            each.pop("assetOrError")
        assert after == before[name]
    assert found["Run"]
    assert found["RunNotFoundError"]


def test_a_run_that_stays_is_executed_again_from_its_failure(
    instance: DagsterInstance, database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_IS_BROKEN", "1")
    failed = executed(instance, step_jobs.repairable)
    monkeypatch.delenv("DATA_IS_BROKEN")
    workers.sent.clear()
    before = runs_by_hand.kinds(instance, failed.run_id)
    database.execute("UPDATE runs SET end_time = end_time - 100 * 86400")

    freed = retention(database).run()

    after = runs_by_hand.kinds(instance, failed.run_id)
    assert freed
    assert freed.rows > len(before) - len(after) > 5
    assert set(before) - set(after) <= set(KINDS)
    options = ReexecutionOptions.from_failure(failed.run_id, instance)
    again = execute_job(reconstructable(step_jobs.repairable), instance=instance, reexecution_options=options)
    with again as result:
        assert result.success
        assert result.output_for_node("last") == 3
    assert workers.keys == ["flaky", "last"]


def test_the_page_of_a_run_stays_without_its_details(
    instance: DagsterInstance, database: Database, workers: Workers
) -> None:
    """Its statistics, its steps and their attempts are what Dagit's chart is drawn by."""

    def shown(run_id: str) -> Any:
        steps = instance.get_run_step_stats(run_id)
        return instance.get_run_stats(run_id), [
            (each.step_key, each.status, each.start_time, each.end_time, each.attempts_list) for each in steps
        ]

    run = executed(instance, step_jobs.retrying)
    before = shown(run.run_id)
    database.execute("UPDATE runs SET end_time = end_time - 50 * 86400")
    freed = retention(database).run()
    assert freed
    assert freed.rows
    assert shown(run.run_id) == before


def test_objects_of_a_real_store_go_by_run(s3_url: str) -> None:
    client = s3_client(s3_url)
    names = [
        "storage/storage/a/step/result",
        "storage/storage/a/step--x/result",
        "logs/storage/a/compute_logs/b.out",
    ]
    others = ["storage/storage/ab/step/result", "storage/@assets/a.pickle", "mine/a/step/result"]
    kept = "storage/storage/a/kept/caf\u00e9"
    for name in [*names, *others, kept]:
        client.put_object(Bucket=BUCKET, Key=name, Body=b"12345")
    outputs = Outputs(client, BUCKET, "storage", "logs")
    texts = [("a", json.dumps({"uri": f"s3://{BUCKET}/{kept}"}))]

    assert outputs.count(["a"], texts) == Freed(objects=3, object_bytes=15)
    assert outputs.remove(["a"], texts) == Freed(objects=3, object_bytes=15)

    left = {entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert left == {*others, kept}
    assert outputs.remove(["a"], texts) == Freed()
