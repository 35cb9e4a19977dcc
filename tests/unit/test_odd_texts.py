"""Whatever text user code brings into a run, the step ends as it should, and Dagster can read and encode all of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetOut,
    DagsterInstance,
    DagsterRun,
    StaticPartitionsDefinition,
    asset,
    materialize,
    multi_asset,
)
from sqlalchemy import create_engine, text

from dagster_stack.objects.pickles import LocalIOManager
from dagster_stack.store.error_chains import MOST_CAUSES
from dagster_stack.texts import MOST_TEXT
from tests.unit import odd_jobs
from tests.unit.odd_jobs import FAILURES, ODD, SHOWN
from tests.unit.runs_by_hand import events, execute, kinds, message, said, started_run


def run_of(instance: DagsterInstance, job: Any, step: str, **more: Any) -> DagsterRun:
    run = started_run(instance, job, **more)
    assert execute(message(instance, run, step)) == ["woken"]
    return run


def query(url: str, statement: str, **values: str) -> list[Any]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = list(connection.execute(text(statement), values))
    engine.dispose()
    return found


def rows(url: str, run: DagsterRun) -> list[str]:
    """The events of a run as they stand in Postgres."""
    found = query(url, "SELECT event FROM event_logs WHERE run_id = :run ORDER BY id", run=run.run_id)
    return [row[0] for row in found]


def test_odd_characters_are_visible_wherever_a_step_says_them(
    instance: DagsterInstance, database_url: str
) -> None:
    run = run_of(instance, odd_jobs.talking, "talks")

    # Then it has succeeded, and each text is there as what can be shown
    assert kinds(instance, run.run_id, "talks")[-1] == "STEP_SUCCESS"
    stored = rows(database_url, run)
    assert not [row for row in stored if "\\udcff\\u0000" in row or "NaN" in row]
    for row in stored:
        # Dagit encodes what it answers.
        json.dumps(json.loads(row), ensure_ascii=False).encode()
    assert sum(json.dumps(SHOWN)[1:-1] in row for row in stored) >= 4
    assert SHOWN in said(instance, run.run_id)
    tags = instance.get_run_by_id(run.run_id).tags  # type: ignore[union-attr]
    assert tags[f"tag {SHOWN}"] == SHOWN


def test_odd_characters_of_an_asset_are_mended_in_dagsters_tables_too(
    instance: DagsterInstance, database_url: str
) -> None:
    run = run_of(instance, odd_jobs.odd_assets, "odd_asset")

    assert kinds(instance, run.run_id, "odd_asset")[-1] == "STEP_SUCCESS"
    latest = instance.get_latest_materialization_event(AssetKey("odd_asset"))
    assert latest
    assert latest.asset_materialization
    assert latest.asset_materialization.metadata[SHOWN].value == SHOWN
    for table, column in (
        ("asset_keys", "last_materialization"),
        ("asset_check_executions", "evaluation_event"),
    ):
        for (stored,) in query(database_url, f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"):
            json.dumps(json.loads(stored), ensure_ascii=False).encode()


def test_an_asset_may_have_an_odd_name(instance: DagsterInstance, tmp_path: Path) -> None:
    key = AssetKey(["odd", ODD])

    @multi_asset(outs={"result": AssetOut(key=key)})
    def odd() -> int:
        return 1

    store = LocalIOManager(base_dir=str(tmp_path))
    result = materialize([odd], instance=instance, resources={"io_manager": store})

    assert result.success
    assert key in instance.all_asset_keys()
    assert instance.get_latest_materialization_event(key)


def test_a_partition_with_an_odd_name_fails_once(instance: DagsterInstance, tmp_path: Path) -> None:
    @asset(partitions_def=StaticPartitionsDefinition(["file\udcff"]))
    def odd() -> int:
        return 1

    store = LocalIOManager(base_dir=str(tmp_path))
    result = materialize(
        [odd],
        instance=instance,
        partition_key="file\udcff",
        resources={"io_manager": store},
        raise_on_error=False,
    )

    (failure,) = [event for event in events(instance, result.run_id) if event.is_step_failure]
    assert "Nonexistent partition keys" in str(failure.step_failure_data.error)


@pytest.mark.parametrize("kind", FAILURES)
def test_a_step_that_fails_oddly_fails_with_its_error(
    instance: DagsterInstance, database_url: str, kind: str
) -> None:
    config = {"ops": {"fails": {"config": kind}}}

    run = run_of(instance, odd_jobs.failing, "fails", run_config=config)

    (failure,) = [event for event in events(instance, run.run_id) if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    whole = error.to_string()
    whole.encode()
    assert len(max(rows(database_url, run), key=len)) < 1_000_000
    expected = {
        "odd": SHOWN,
        "failure": SHOWN,
        "long": f"… [cut: {MOST_TEXT:,} of 100,000,0",
        "unspeakable": "Unspeakable",
        "unpicklable": "can't be pickled",
        "group": "OSError: the second",
        "class": "its class has a long name",
        "odd class": "its class has an odd name",
        "deep": "maximum recursion depth exceeded",
        "chain": f"({1000 - MOST_CAUSES + 1} more errors that led to this one are left out)",
    }
    assert expected[kind] in whole


def test_what_is_too_long_is_cut_and_says_how_long_it_was(
    instance: DagsterInstance, database_url: str
) -> None:
    run = run_of(instance, odd_jobs.saying_much, "says_much")

    assert kinds(instance, run.run_id, "says_much")[-1] == "STEP_SUCCESS"
    assert any("of 10,000,000 characters]" in line for line in said(instance, run.run_id))
    (output,) = [event for event in events(instance, run.run_id) if event.event_type_value == "STEP_OUTPUT"]
    metadata = output.step_output_data.metadata
    assert str(metadata["text"].value).endswith("of 10,000,000 characters]")
    assert str(metadata["json"].value).startswith("[cut: Json of ")


def test_a_run_may_be_launched_with_odd_tags(instance: DagsterInstance) -> None:
    run = started_run(instance, odd_jobs.talking)
    launched = instance.create_run_for_job(
        odd_jobs.talking, tags={odd_jobs.ODD: odd_jobs.ODD}, run_id=run.run_id[:-4] + "abcd"
    )

    assert instance.get_run_by_id(launched.run_id).tags[SHOWN] == SHOWN  # type: ignore[union-attr]


@pytest.mark.parametrize("place", ["output", "asset", "table"])
def test_a_number_that_python_does_not_write_is_no_end_of_the_log(
    instance: DagsterInstance, place: str
) -> None:
    run = run_of(instance, odd_jobs.counting, "counts", run_config={"ops": {"counts": {"config": place}}})

    assert kinds(instance, run.run_id, "counts")[-1] in {"STEP_SUCCESS", "STEP_FAILURE"}
    assert kinds(instance, run.run_id, "counts").count("STEP_START") == 1
    assert "before" in said(instance, run.run_id)
