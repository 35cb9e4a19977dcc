"""What is old goes, in small parts, and no page about assets is another one after it."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError
from dagster import DagsterInstance, ReexecutionOptions, execute_job, reconstructable
from sqlalchemy import text

from dagster_stack.errors import ObjectsForbidden, RunDoomed, SettingsError
from dagster_stack.objects.client import s3_client
from dagster_stack.retention import removal, snapshots
from dagster_stack.retention import retention as retention_module
from dagster_stack.retention.details import KINDS
from dagster_stack.retention.freed import Freed
from dagster_stack.retention.groups import doom
from dagster_stack.retention.outputs import Outputs, spelled
from dagster_stack.retention.periods import Periods
from dagster_stack.retention.retention import DAY_SECS, LAST, TOTAL
from dagster_stack.retention.session import alone, is_awaited
from dagster_stack.store.connections import pooled_engine
from dagster_stack.store.facts import Facts
from tests.unit import asset_pages, old_runs, runs_by_hand, step_jobs
from tests.unit.conftest import ON_POSTGRES, opened
from tests.unit.driven_runs import Workers, executed
from tests.unit.holders import Database
from tests.unit.old_runs import (
    FIRST_YOUNG,
    RUNS,
    USERS,
    BucketInMemory,
    bucket_of_old_runs,
    retention,
    rows_of,
    runs_of,
)
from tests.unit.partitioned_assets import NAMES
from tests.unit.postgres_server import PostgresServer, forget
from tests.unit.seaweed import BUCKET
from tests.waiting import wait_until


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


@dataclass
class Retained:
    """The old runs after a pass over them, and what was before."""

    database: Database
    instance: DagsterInstance
    bucket: BucketInMemory
    told: Freed
    changed_by_telling: bool
    freed: Freed
    pages: dict[str, dict[str, Any]]
    by_dagit: dict[str, dict[str, Any]]
    after_by_dagit: dict[str, dict[str, Any]]

    @property
    def left(self) -> set[int]:
        return runs_of(self.database)

    @property
    def wanted(self) -> set[int]:
        """The last run of each asset."""
        last = self.database.execute("SELECT last_run_id FROM asset_keys")
        return {int(row[0].removeprefix("run_")) for row in last}


@pytest.fixture(scope="module")
def retained(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retained]:
    bucket = bucket_of_old_runs()
    with (
        postgres.database() as url,
        opened(tmp_path_factory.mktemp("dagster_home"), ON_POSTGRES.format(url=url)) as instance,
        asset_pages.dagit(instance) as dagit,
    ):
        database = Database(url)
        old_runs.store(database)
        before, by_dagit = asset_pages.pages(instance), {name: dagit(name) for name in SHOWN}
        rows = rows_of(database)
        told = retention(database, bucket).count()
        changed = rows_of(database) != rows or bool(bucket.deleted)
        freed = retention(database, bucket).run()
        assert freed
        after = {name: dagit(name) for name in SHOWN}
        yield Retained(database, instance, bucket, told, changed, freed, before, by_dagit, after)


#: The assets that Dagit is asked for; storage is asked for all.
SHOWN = NAMES[::5]


def test_every_asset_page_is_the_same_after(retained: Retained) -> None:
    after = asset_pages.pages(retained.instance)
    for name in NAMES:
        for part, value in retained.pages[name].items():
            assert after[name][part] == value, f"{part} of {name}"
    # Some partitions count as failed, and some were made by runs that are gone
    assert any(len(list(page["failed"].get_partition_keys())) for page in after.values())
    assert made_by(after) - retained.left


def made_by(pages: dict[str, dict[str, Any]]) -> set[int]:
    """The runs that made the latest of each partition."""
    records = [found[0] for each in pages.values() for found in each["of each"] if found]
    return {int(record.run_id.removeprefix("run_")) for record in records}


def test_dagit_shows_the_same_of_an_asset(retained: Retained) -> None:
    found = Counter[str]()
    for name in SHOWN:
        for each in (retained.by_dagit[name], retained.after_by_dagit[name]):
            # What becomes of the run of something that stayed: it is not found.
            for made in filter(None, each["assetNodeOrError"]["latestMaterializationByPartition"]):
                found[made.pop("runOrError")["__typename"]] += 1
                made.pop("stepStats")
            each.pop("assetOrError")
        assert retained.after_by_dagit[name] == retained.by_dagit[name]
    assert found["Run"]
    assert found["RunNotFoundError"]


def test_what_is_old_is_gone_and_nothing_else(retained: Retained) -> None:
    database, left = retained.database, retained.left
    assert retained.freed.runs == RUNS - len(left) > 8000
    assert set(range(FIRST_YOUNG, RUNS + 1)) <= left
    # Nothing of the runs that are gone is left over
    for table in ("run_tags", "dagster_stack_claims"):
        assert not database.execute(f"SELECT FROM {table} WHERE NOT run_id IN (SELECT run_id FROM runs)")
    assert not database.execute(
        "SELECT FROM asset_event_tags WHERE NOT event_id IN (SELECT id FROM event_logs)"
    )
    of_gone = "SELECT count(*) FROM asset_check_executions WHERE NOT run_id IN (SELECT run_id FROM runs)"
    assert database.execute(of_gone)[0][0] <= 2 * len(NAMES)


def test_objects_of_runs_that_are_gone_go_and_no_others(retained: Retained) -> None:
    objects, left = retained.bucket.objects, retained.left
    assert objects.items() >= USERS.items()
    for number in made_by(retained.pages):
        assert f"storage/storage/run_{number}/kept/result" in objects
    for number in range(1, RUNS + 1):
        there = f"storage/storage/run_{number}/step/result" in objects
        assert there == (number in left) == (f"logs/storage/run_{number}/compute_logs/a.out" in objects)


def test_groups_go_as_a_whole_or_stay(retained: Retained) -> None:
    left = retained.left
    assert not {7, 1507} & left
    assert {507, 9507} <= left
    assert not set(old_runs.BACKFILLS["all_old"][1]) & left - retained.wanted
    assert set(old_runs.BACKFILLS["partly_young"][1]) <= left
    assert set(old_runs.BACKFILLS["open"][1]) <= left
    assert set(old_runs.UNDER_WAY) <= left
    for column, table in (("key", "bulk_actions"), ("backfill_id", "backfill_tags")):
        found = {row[0] for row in retained.database.execute(f"SELECT {column} FROM {table}")}
        assert found == {"partly_young", "open"}


def test_snapshots_go_that_only_removed_runs_had(retained: Retained) -> None:
    assert retained.freed.snapshots == 2
    found = {row[0] for row in retained.database.execute("SELECT snapshot_id FROM snapshots")}
    assert found == {"job_of_young", old_runs.PLAN}


def test_a_look_beforehand_says_what_would_go_and_changes_nothing(retained: Retained) -> None:
    told, freed = retained.told, retained.freed
    assert not retained.changed_by_telling
    assert (told.runs, told.objects, told.object_bytes) == (freed.runs, freed.objects, freed.object_bytes)
    assert 0.8 * freed.rows < told.rows <= freed.rows


def test_what_was_freed_is_noted_for_the_figures(retained: Retained) -> None:
    facts = Facts(retained.database.engine)
    assert facts.read(LAST)["rows"] == facts.read(TOTAL)["rows"] == retained.freed.rows
    assert facts.read(LAST)["error"] is None


def test_a_run_key_is_remembered_so_that_no_sensor_launches_it_again(few_database: Database) -> None:
    # Given an old run that a sensor asked for: Dagster looks for its key among all runs
    few_database.execute(
        "INSERT INTO run_tags (run_id, key, value) VALUES ('run_3', 'dagster/run_key', 'file-3'),"
        " ('run_3', 'dagster/sensor_name', 'files')"
    )
    bucket = bucket_of_old_runs()

    freed = retention(few_database, bucket, details=0, runs=365).run()

    # Then it is found, with its tags, and all else that goes of others is gone
    assert freed
    assert freed.runs > 100
    tags = dict(few_database.execute("SELECT key, value FROM run_tags WHERE run_id = 'run_3'"))
    assert tags.items() >= {"dagster/run_key": "file-3", "dagster/sensor_name": "files"}.items()
    assert 3 in runs_of(few_database)
    of_it = few_database.execute("SELECT DISTINCT dagster_event_type FROM event_logs WHERE run_id = 'run_3'")
    assert {kind for (kind,) in of_it} <= set(removal.KEPT)
    assert not [key for key in bucket.objects if "/run_3/" in key and not key.endswith("/kept/result")]
    # And the next pass, and one a month later, find nothing to do
    assert retention(few_database, bucket, details=0, runs=365).run() == Freed()
    few_database.execute(
        "UPDATE dagster_stack_doomed SET gone_at = gone_at - interval '30 days', checked_at = gone_at"
    )
    assert retention(few_database, bucket, details=0, runs=365).run() == Freed()
    assert few_database.execute("SELECT FROM dagster_stack_doomed WHERE run_id = 'run_3'")


def test_details_of_ended_runs_go_alone(few_database: Database) -> None:
    count = "SELECT dagster_event_type, count(*) FROM event_logs GROUP BY 1"
    before = dict(few_database.execute(count))
    # Run 400 ended 780 days ago
    freed = retention(few_database, details=780, runs=0).run()
    assert freed

    after = dict(few_database.execute(count))
    assert {kind for kind in before if before[kind] != after[kind]} == {
        "ENGINE_EVENT",
        "STEP_WORKER_STARTING",
        None,
    }
    ended = 400 - len([each for each in old_runs.UNDER_WAY if each <= 400])
    assert sum(before.values()) - sum(after.values()) == freed.rows == 3 * ended
    assert runs_of(few_database) == set(range(1, 601))


def test_nothing_goes_with_0(few_database: Database) -> None:
    before, bucket = rows_of(few_database), bucket_of_old_runs()
    assert retention(few_database, bucket, 0, 0).run() == Freed()
    assert rows_of(few_database) == before
    assert not bucket.deleted


@pytest.mark.parametrize("text", ["", "-1", "1.5", "a year", "36501", "99999999999"])
@pytest.mark.parametrize("name", ["KEEP_DETAILS_DAYS", "KEEP_RUNS_DAYS", "AUDIT_DAYS"])
def test_what_is_no_number_of_days_is_refused_with_the_cure(name: str, text: str) -> None:
    if not text:
        assert Periods.from_environment({name: text}) == Periods(30, 365, 365)
        return
    with pytest.raises(
        SettingsError, match=rf"{name} is .*from 1 to 36500, or 0 to keep all. Change it in .env"
    ):
        Periods.from_environment({name: text})


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
            wait_until(lambda: is_awaited(connection), 20, "the other one waits")
            assert not other.done()
        assert other.result(20)


def test_a_pass_makes_way_for_a_backup_and_the_next_one_goes_on(few_database: Database) -> None:
    made = retention(few_database)
    with ThreadPoolExecutor() as threads, pooled_engine(few_database.url, 3).connect() as backup:
        begun = list[Any]()

        def begin_a_backup(*_: Any) -> None:
            if not begun:
                lock = text("SELECT pg_advisory_lock(hashtextextended('dagster_stack_backup', 0))")
                begun.append(threads.submit(backup.execute, lock))
                with few_database.engine.connect() as connection:
                    wait_until(lambda: is_awaited(connection), 20, "the backup waits")

        assert made.run(begin_a_backup)
        begun[0].result(20)
        ends = [made.is_done]
        assert made.run() is None
        backup.invalidate()
    left = len(runs_of(few_database))
    freed = made.run(wait=True)
    assert freed
    assert freed.runs
    assert [*ends, made.is_done] == [False, True]
    assert len(runs_of(few_database)) == left - freed.runs


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
    assert left & {*names, *others, kept} == {*others, kept}
    assert outputs.remove(["a"], texts) == Freed()


def test_a_folder_that_an_event_names_stays_with_all_that_is_in_it() -> None:
    folder = "storage/storage/a/"
    named = spelled(f"{folder}made--é/table/part=1/0.parquet", folder)
    for path in (
        f"{folder}made--é/table",
        f"s3://b/{folder}made--é/table/",
        f"{folder}made--é/table/part=1/0.parquet",
    ):
        for said in (json.dumps({"path": path}), json.dumps({"path": path}, ensure_ascii=False)):
            assert any(each in said for each in named)
    for other in ("", "made--é/tables", "made--é/table/part=10", "made"):
        assert not any(each in json.dumps({"path": f"{folder}{other}"}) for each in named)


def test_a_bucket_that_lets_nothing_be_deleted_is_told_with_the_cure(few_database: Database) -> None:
    bucket = bucket_of_old_runs()

    def refused(**_: str) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, "DeleteObject")

    bucket.delete_object = refused  # type: ignore[method-assign]
    with pytest.raises(ObjectsForbidden, match=r"s3:ListBucket, s3:DeleteObject\), or set KEEP_RUNS_DAYS=0"):
        retention(few_database, bucket).run()
    # All is there, and a later pass goes on.
    assert len(runs_of(few_database)) == 600
    assert Facts(few_database.engine).read(LAST)["error"] == "ObjectsForbidden"
    retention(few_database, bucket_of_old_runs()).run()
    assert len(runs_of(few_database)) < 600
