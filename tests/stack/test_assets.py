"""The months as partitions: the backfill, the year's report, its check, and the schedule."""

from collections import Counter
from typing import Any

import pytest

from tests.stack import raw_flights, runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

MONTHS = [f"2013-{month:02}-01" for month in range(1, 13)]
BACKFILLED = ("raw_flights", "checked_flights", "monthly_delays")
#: Twelve processes that each import everything, on a busy machine.
BACKFILL_SECS = 600

BACKFILL_STATE = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status runs(limit: 100) { runId status tags { key value } } error { message } }
  }
}
"""
ASSETS = """
query Assets {
  assetNodes(group: {groupName: "flights", repositoryName: "__repository__", repositoryLocationName: "pipelines"}) {
    assetKey { path }
    partitionStats { numMaterialized numFailed numPartitions }
    latestMaterializationByPartition {
      partition
      metadataEntries { label ... on IntMetadataEntry { intValue } }
    }
  }
}
"""
CHECK = """
query Check {
  assetNodeOrError(assetKey: {path: ["delay_report"]}) {
    ... on AssetNode {
      assetChecksOrError { ... on AssetChecks { checks {
        name
        executionForLatestMaterialization { status runId evaluation { description } }
      } } }
    }
  }
}
"""
SCHEDULE = {**runs.LOCATION, "scheduleName": "nightly_flights"}
SCHEDULE_STATE = """
query Schedule($selector: ScheduleSelector!) {
  scheduleOrError(scheduleSelector: $selector) {
    ... on Schedule { id cronSchedule executionTimezone scheduleState { id selectorId status nextTick { timestamp } } }
  }
}
"""
START = "mutation Start($selector: ScheduleSelector!) { startSchedule(scheduleSelector: $selector) { __typename } }"
STOP = "mutation Stop($id: String!) { stopRunningSchedule(id: $id) { __typename } }"
EVALUATE = """
mutation Evaluate($selector: ScheduleSelector!, $timestamp: Float!) {
  scheduleDryRun(selectorData: $selector, timestamp: $timestamp) {
    __typename
    ... on DryRunInstigationTick {
      evaluationResult {
        error { message } skipReason runRequests { runKey runConfigYaml jobName tags { key value } }
      }
    }
  }
}
"""


@pytest.fixture(scope="module")
def backfill(stack: Stack) -> dict[str, Any]:
    """The finished backfill of all months, as Dagit's asset graph starts it."""
    selection = [{"path": [name]} for name in BACKFILLED]
    backfill_id = runs.launch_backfill(stack, assetSelection=selection, partitionNames=MONTHS)
    found: dict[str, Any] = wait_until(
        lambda: stack.graphql(BACKFILL_STATE, id=backfill_id)["partitionBackfillOrError"],
        BACKFILL_SECS,
        "the backfill ended",
        until=lambda state: state["status"] not in ("REQUESTED", "CANCELING"),
        pause=2,
    )
    return found


@pytest.fixture(scope="module")
def report(stack: Stack, backfill: dict[str, Any]) -> str:
    """The run that made the year's report out of the backfilled months, with its check."""
    run_id = runs.launch(
        stack, "__ASSET_JOB",
        assetSelection=[{"path": ["delay_report"]}],
        assetCheckSelection=[
            {"assetKey": {"path": ["delay_report"]}, "name": "delay_report_accounts_for_all_rows"}
        ],
    )  # fmt: skip
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    return run_id


def assets(stack: Stack) -> dict[str, dict[str, Any]]:
    return {node["assetKey"]["path"][0]: node for node in stack.graphql(ASSETS)["assetNodes"]}


def test_a_backfill_of_the_year_is_twelve_runs_that_succeed(backfill: dict[str, Any]) -> None:
    # Given a backfill of all twelve months
    # When it has ended
    partitions = Counter(
        tag["value"] for run in backfill["runs"] for tag in run["tags"] if tag["key"] == "dagster/partition"
    )

    # Then it was one run a month, and all succeeded
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill["error"]
    assert partitions == Counter(MONTHS)
    assert {run["status"] for run in backfill["runs"]} == {"SUCCESS"}


def test_a_backfill_spreads_over_the_workers(stack: Stack, backfill: dict[str, Any]) -> None:
    # Given the runs of a backfill
    # When their steps name who executed them
    executed = {
        name
        for run in backfill["runs"]
        for names in runs.workers(stack, run["runId"]).values()
        for name in names
    }

    # Then both workers took part
    assert len(executed) == 2


def test_every_month_is_materialized_with_its_own_figures(stack: Stack, backfill: dict[str, Any]) -> None:
    # Given a backfill of all twelve months
    # When the asset graph is read
    nodes = assets(stack)

    # Then each asset has all partitions, with the figures of the raw table
    figures = {
        f"{month}-01": found.counts() for month, found in raw_flights.by_month(raw_flights.raw_table())
    }
    for name in BACKFILLED:
        stats = nodes[name]["partitionStats"]
        assert (stats["numMaterialized"], stats["numFailed"], stats["numPartitions"]) == (12, 0, 12), name
    for name in ("checked_flights", "monthly_delays"):
        shown = {
            entry["partition"]: {
                metadata["label"]: metadata["intValue"]
                for metadata in entry["metadataEntries"]
                if metadata["label"] in ("rows", "used", "cancelled", "rejected")
            }
            for entry in nodes[name]["latestMaterializationByPartition"]
        }
        assert shown == figures, name


def test_the_years_report_is_made_of_all_months(stack: Stack, report: str) -> None:
    # Given the report of the year over backfilled months
    # When its metadata is read
    metadata = stack.metadata(report, "delay_report")

    # Then it is complete
    assert metadata["months"] == 12
    assert metadata["rows"] == 336_776
    assert f"reports/delay_report/{report}/report.html" in stack.keys("reports/delay_report/")


def test_the_asset_check_passes_and_says_on_what_grounds(stack: Stack, report: str) -> None:
    # Given the report of the year
    # When its check is read
    (check,) = stack.graphql(CHECK)["assetNodeOrError"]["assetChecksOrError"]["checks"]

    # Then it was made with this report, and passed
    execution = check["executionForLatestMaterialization"]
    assert check["name"] == "delay_report_accounts_for_all_rows"
    assert execution["runId"] == report
    assert execution["status"] == "SUCCEEDED"
    assert execution["evaluation"]["description"] == "336,776 of 336,776 rows are accounted for."


def test_the_schedule_is_off_until_it_is_turned_on(stack: Stack) -> None:
    # Given the schedule as it is shipped
    schedule = stack.graphql(SCHEDULE_STATE, selector=SCHEDULE)["scheduleOrError"]
    assert schedule["scheduleState"]["status"] == "STOPPED"

    # When it is turned on in Dagit
    started = stack.graphql(START, selector=SCHEDULE)["startSchedule"]
    try:
        # Then it waits for the next night
        assert started["__typename"] == "ScheduleStateResult"
        running = stack.graphql(SCHEDULE_STATE, selector=SCHEDULE)["scheduleOrError"]["scheduleState"]
        assert running["status"] == "RUNNING"
        assert running["nextTick"]["timestamp"] % 86_400 == 3 * 3600
    finally:
        stack.graphql(STOP, id=schedule["id"])
    stopped = stack.graphql(SCHEDULE_STATE, selector=SCHEDULE)["scheduleOrError"]["scheduleState"]
    assert stopped["status"] == "STOPPED"


def test_a_tick_of_the_schedule_asks_for_a_run_of_flights(stack: Stack) -> None:
    # Given the schedule, whose real tick is at night
    # When a tick is evaluated as Dagit's "Test schedule" does
    tick = stack.graphql(EVALUATE, selector=SCHEDULE, timestamp=1_800_000_000.0)["scheduleDryRun"]

    # Then it asks for one run, and Dagit launches a run of just that
    assert tick["__typename"] == "DryRunInstigationTick", tick
    result = tick["evaluationResult"]
    assert result["error"] is None
    (request,) = result["runRequests"]
    tags = {tag["key"]: tag["value"] for tag in request["tags"]}
    assert tags["dagster/schedule_name"] == "nightly_flights"
    run_id = runs.launch(stack, request["jobName"] or "flights", tags, config=request["runConfigYaml"])
    runs.wait_for_event(stack, run_id, "STEP_SUCCESS", "split_by_month")
    runs.terminate(stack, run_id)
    assert stack.wait_for_run(run_id)["status"] == "CANCELED"
