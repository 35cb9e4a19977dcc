"""Assets on `celery_executor`: what is materialized, checked and observed, and what is left out."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.stack import Stack

SPECS = {
    "partitioned": Spec("partitioned", tags={"dagster/partition": "south"}),
    "whole_family": Spec("families"),
    "part_of_family": Spec("families", assets=["beta", "child"]),
    "checked": Spec("checked"),
    "observing": Spec("observing"),
    "graph_assets": Spec("graph_assets"),
}
ASSET_EVENTS = """
query AssetEvents($id: ID!) {
  logsForRun(runId: $id, limit: 1000) {
    ... on EventConnection {
      events {
        __typename
        ... on MaterializationEvent { partition assetKey { path } }
        ... on ObservationEvent { assetKey { path } }
        ... on AssetCheckEvaluationEvent { evaluation { checkName success } }
      }
    }
  }
}
"""
WIPE = """
mutation Wipe($assets: [PartitionsByAssetSelector!]!) {
  wipeAssets(assetPartitionRanges: $assets) {
    __typename
    ... on Error { message }
  }
}
"""
#: All that these runs materialize or observe.
ASSETS = [
    "region", "region_report", "alpha", "beta", "gamma", "child", "suspicious", "built_on_suspicious", "noted",
    "built_on_noted", "watched", "from_graph",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(stack: Stack, jobs: AdHoc) -> Iterator[dict[str, str]]:
    try:
        yield dict(zip(SPECS, jobs.execute(*SPECS.values()), strict=True))
    finally:
        # Other tests look at the assets that Dagit knows.
        answer = stack.graphql(WIPE, assets=[{"assetKey": {"path": [name]}} for name in ASSETS])["wipeAssets"]
        assert answer["__typename"] == "AssetWipeSuccess", answer


def asset_events(stack: Stack, run_id: str) -> Counter[tuple[str, str]]:
    """Materialized and observed assets (with their partition), and checks with their result."""
    found: Counter[tuple[str, str]] = Counter()
    for event in stack.graphql(ASSET_EVENTS, id=run_id)["logsForRun"]["events"]:
        kind = event["__typename"]
        if kind == "AssetCheckEvaluationEvent":
            found[event["evaluation"]["checkName"], str(event["evaluation"]["success"])] += 1
        elif kind in ("MaterializationEvent", "ObservationEvent"):
            name = "/".join(event["assetKey"]["path"])
            found[kind, f"{name}/{event['partition']}" if event.get("partition") else name] += 1
    return found


def materialized(*names: str) -> Counter[tuple[str, str]]:
    return Counter(("MaterializationEvent", name) for name in names)


def test_a_partition_is_materialized_and_handed_on(stack: Stack, made: dict[str, str]) -> None:
    # Given a run for one partition of two assets
    run_id = made["partitioned"]

    # When it has ended
    # Then both have this partition, and the second one got the data of the first
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert asset_events(stack, run_id) == materialized("region/south", "region_report/south")
    assert stack.metadata(run_id, "region_report")["of"] == "south"


def test_a_multi_asset_makes_all_or_the_selected_ones(stack: Stack, made: dict[str, str]) -> None:
    # Given a step that makes three assets: a run of all, and one of a part
    # When they have ended
    # Then each made what was selected, and the asset that depends on one of them
    for name, expected in (
        ("whole_family", ["alpha", "beta", "gamma", "child"]),
        ("part_of_family", ["beta", "child"]),
    ):
        assert stack.run(made[name])["status"] == "SUCCESS", stack.failure_texts(made[name])
        assert asset_events(stack, made[name]) == materialized(*expected)


def test_a_blocking_check_that_fails_keeps_what_follows_from_being_made(
    stack: Stack, made: dict[str, str]
) -> None:
    # Given an asset with a check that blocks and fails, and one with a check that fails and only warns
    run_id = made["checked"]

    # When the run has ended
    # Then both checks were evaluated, and what is built on the blocked asset alone was left out
    assert stack.run(run_id)["status"] == "FAILURE"
    assert asset_events(stack, run_id) == materialized("suspicious", "noted", "built_on_noted") + Counter(
        {("must_hold", "False"): 1, ("may_fail", "False"): 1}
    )
    assert not runs.count_events(stack, run_id, "STEP_START")["built_on_suspicious"]


def test_a_source_asset_is_observed(stack: Stack, made: dict[str, str]) -> None:
    # Given a run that observes a source asset
    # When it has ended
    # Then there is an observation
    assert stack.run(made["observing"])["status"] == "SUCCESS", stack.failure_texts(made["observing"])
    assert asset_events(stack, made["observing"]) == {("ObservationEvent", "watched"): 1}


def test_a_graph_of_ops_makes_an_asset(stack: Stack, made: dict[str, str]) -> None:
    # Given an asset that is made by a graph of two ops
    run_id = made["graph_assets"]

    # When it has ended
    # Then both were steps of their own, and there is one asset
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert set(runs.count_events(stack, run_id, "STEP_SUCCESS")) == {"from_graph.source", "from_graph.follow"}
    assert asset_events(stack, run_id) == materialized("from_graph")
