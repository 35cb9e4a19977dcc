"""What a page about now, or an automation, asks of old runs: it is the same after a pass of retention."""

import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetsDefinition,
    AutomationCondition,
    DagsterInstance,
    DataVersion,
    Definitions,
    Failure,
    MaterializeResult,
    StaticPartitionsDefinition,
    asset,
    evaluate_automation_conditions,
    job,
    materialize,
    op,
    static_partitioned_config,
)
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.dagster_run import DagsterRunStatus, RunsFilter

from dagster_stack.retention import snapshots
from dagster_stack.retention.session import Pace
from tests.unit.holders import Database
from tests.unit.old_runs import retention

PARTITIONED = StaticPartitionsDefinition(["a", "b"])


def age(database: Database, days: int = 500) -> None:
    """All runs that have ended did so that many days earlier."""
    database.execute("UPDATE runs SET end_time = end_time - :days * 86400", days=days)


def stale(
    instance: DagsterInstance, assets: Sequence[AssetsDefinition], key: str, partition: str
) -> StaleStatus:
    graph = Definitions(assets=list(assets)).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return resolver.get_status(AssetKey(key), partition)


def test_a_partition_is_not_stale_since_its_input_was_made_again_as_it_was(
    instance: DagsterInstance, database: Database
) -> None:
    # Given a partition whose input was made again later, with the same content
    version = DataVersion("same")

    @asset(partitions_def=PARTITIONED)
    def source() -> MaterializeResult:
        return MaterializeResult(data_version=version)

    @asset(partitions_def=PARTITIONED, deps=[source])
    def made_of_it() -> None: ...

    def make(made: AssetsDefinition, partition: str) -> None:
        assets = [source, made_of_it]
        assert materialize(assets, selection=[made], partition_key=partition, instance=instance).success

    def status() -> StaleStatus:
        return stale(instance, [source, made_of_it], "made_of_it", "a")

    def times() -> int:
        of_source = """SELECT count(*) FROM event_logs WHERE asset_key = '["source"]' AND partition = 'a'
            AND dagster_event_type = 'ASSET_MATERIALIZATION'"""
        return int(database.execute(of_source)[0][0])

    make(source, "a")
    make(made_of_it, "a")
    for _ in range(3):
        make(source, "a")
    make(source, "b")
    make(made_of_it, "b")
    assert status() is StaleStatus.FRESH
    age(database)

    freed = retention(database).run()

    # Then it is no other one, and one event says since when it has been so
    assert freed
    assert freed.runs == 5
    assert status() is StaleStatus.FRESH
    assert times() == 2
    # And when the content is another one, it goes
    version = DataVersion("another")
    make(source, "a")
    assert status() is StaleStatus.STALE
    database.execute("UPDATE dagster_stack_doomed SET checked_at = now() - interval '2 days'")
    retention(database).run()
    assert status() is StaleStatus.STALE
    assert times() == 1


def test_an_asset_whose_last_run_failed_still_counts_as_failed(
    instance: DagsterInstance, database: Database
) -> None:
    @asset(automation_condition=AutomationCondition.execution_failed())
    def broken() -> None:
        raise Failure("always")

    # Given a run that failed, after which somebody reported the asset by hand
    assert not materialize([broken], instance=instance, raise_on_error=False).success
    instance.report_runless_asset_event(AssetMaterialization("broken"))

    def failed() -> int:
        return evaluate_automation_conditions(Definitions(assets=[broken]), instance).total_requested

    assert failed() == 1
    age(database)
    assert retention(database).run()
    assert failed() == 1


def test_the_run_that_made_an_asset_is_still_known_by_its_tags(
    instance: DagsterInstance, database: Database
) -> None:
    condition = AutomationCondition.executed_with_tags(tag_keys={"by"})

    @asset(automation_condition=condition)
    def kept() -> None: ...

    @asset(automation_condition=condition, name="kept")
    def failing() -> None:
        raise Failure("later")

    assert materialize([kept], instance=instance, tags={"by": "me"}).success
    assert not materialize([failing], instance=instance, raise_on_error=False).success

    def known() -> int:
        return evaluate_automation_conditions(Definitions(assets=[kept]), instance).total_requested

    assert known() == 1
    age(database)
    assert retention(database).run()
    assert known() == 1


def test_partitions_of_a_job_are_not_missing(instance: DagsterInstance, database: Database) -> None:
    # Given old runs of a job of ops for two partitions, one of them twice, and one that was canceled afterwards
    @op
    def work() -> None: ...

    @static_partitioned_config(["a", "b"])
    def config(_: str) -> dict[str, Any]:
        return {}

    @job(config=config)
    def partitioned() -> None:
        work()

    tags = {".dagster/repository": "__repository__@here"}
    runs = [
        partitioned.execute_in_process(instance=instance, partition_key=each, tags=tags).run_id
        for each in "aab"
    ]
    canceled = partitioned.execute_in_process(instance=instance, partition_key="b", tags=tags).run_id
    database.execute("UPDATE runs SET status = 'CANCELED' WHERE run_id = :run", run=canceled)
    wanted = RunsFilter(
        tags={"dagster/partition_set": "partitioned_partition_set", **tags},
        statuses=[each for each in DagsterRunStatus if each is not DagsterRunStatus.CANCELED],
    )

    def pages() -> dict[str, Any]:
        found = instance.get_run_partition_data(wanted)
        return {each.partition: (each.run_id, each.status) for each in found}

    before = pages()
    assert {run for run, _ in before.values()} == set(runs[1:])
    age(database)

    # When they go, then the last one of each partition is still there, without its events
    assert retention(database).run()
    assert pages() == before
    assert not instance.has_run(runs[0])
    assert not instance.has_run(canceled)
    assert not instance.all_logs(runs[1])
    # And when a partition is executed again, it goes with the next look
    partitioned.execute_in_process(instance=instance, partition_key="a", tags=tags)
    database.execute("UPDATE dagster_stack_doomed SET checked_at = now() - interval '2 days'")
    assert retention(database).run()
    assert not instance.has_run(runs[1])
    assert instance.has_run(runs[2])


@pytest.mark.parametrize("pause", [1, 2])
def test_a_snapshot_stays_that_a_run_names_which_begins_meanwhile(
    database: Database, pause: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is executed once a year, as its last run goes: Dagster finds the plan there, and stores none."""
    # Given two plans that only a removed run had, and a job's snapshot that is read in between
    monkeypatch.setattr(snapshots, "AT_ONCE", 1)
    plans = [f"plan_{pause}_a", f"plan_{pause}_b"]
    insert = "INSERT INTO snapshots (snapshot_id, snapshot_body, snapshot_type) VALUES (:name, :body, :type)"
    for plan in plans:
        database.execute(insert, name=plan, body=b"", type="EXECUTION_PLAN")
    database.execute(insert, name=f"job_{pause}", body=zlib.compress(b"{}"), type="PIPELINE")
    database.execute(
        "INSERT INTO dagster_stack_doomed (run_id, snapshots, gone_at, checked_at) VALUES (:run, :plans, now(), now())",
        run=f"gone_{pause}", plans=plans,
    )  # fmt: skip
    pauses = 0

    # When a run begins in a pause
    def rest(_: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == pause:
            database.run(execution_plan_snapshot_id=plans[1])

    with database.engine.connect() as connection:
        freed = snapshots.Snapshots().remove(connection, Pace(rest))

    # Then its plan is there
    left = {row[0] for row in database.execute("SELECT snapshot_id FROM snapshots")}
    assert freed.snapshots == 1
    assert left & set(plans) == {plans[1]}
