"""Assets and partitions of any name on the stack: each has an object of its own, which MinIO lists."""

import json
from collections.abc import Iterator

import pytest

from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.executor_jobs.assets import AWKWARD, NESTED
from tests.stack.stack import Stack
from tests.stack.test_executor_assets import WIPE

PARTITIONS = AWKWARD.get_partition_keys()
ASSETS = [["awkward"], ["awkward_together"], *NESTED]


@pytest.fixture(scope="module")
def made(stack: Stack, jobs: AdHoc) -> Iterator[dict[str, str]]:
    """A run each for the partitions, one that loads them all, one of assets whose keys begin with another's."""
    parts = [Spec("awkward_parts", tags={"dagster/partition": each}) for each in PARTITIONS]
    try:
        begun = jobs.begin(*parts, Spec("nested_names"))
        for run_id in begun:
            assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
        yield {"nested": begun[-1], "whole": jobs.execute(Spec("awkward_whole"))[0]}
    finally:
        # Other tests look at the assets that Dagit knows, and at what lies in the bucket.
        answer = stack.graphql(WIPE, assets=[{"assetKey": {"path": path}} for path in ASSETS])["wipeAssets"]
        assert answer["__typename"] == "AssetWipeSuccess", answer
        for key in ours(stack):
            stack.s3.delete_object(Bucket=stack.bucket, Key=key)


def ours(stack: Stack) -> list[str]:
    return [key for key in stack.keys("storage/@") if "awkward" in key or "b29" in key]


def test_partitions_of_any_name_are_loaded_as_they_were_stored(stack: Stack, made: dict[str, str]) -> None:
    loaded = stack.metadata(made["whole"], "awkward_together")["loaded"]

    assert (json.loads(loaded) if isinstance(loaded, str) else loaded) == {each: each for each in PARTITIONS}


def test_each_thing_is_an_object_that_is_listed_and_shown(stack: Stack, made: dict[str, str]) -> None:
    listed = set(ours(stack))

    assert {key for key in listed if key.startswith("storage/@assets/b29")} == {
        "storage/@assets/b29.pickle",
        "storage/@assets/b29/orders.pickle",
        "storage/@assets/b29%2forders.pickle",
    }
    assert len([key for key in listed if key.startswith("storage/@partitions/awkward/")]) == len(PARTITIONS)
    assert stack.metadata(made["nested"], "nested_names")["path"] in listed


def test_the_store_of_the_stack_refuses_late_writes(stack: Stack) -> None:
    """`init` has tried it."""
    ((kept,),) = stack.sql("SELECT value -> 'kept' FROM dagster_stack_facts WHERE name = 's3.conditions'")

    assert json.loads(kept) == {"put": True, "multipart": True}
    assert not stack.keys("storage/@probe/")


def test_another_stack_on_these_stores_is_refused_with_both_names(stack: Stack) -> None:
    # Given another project's init on this stack's database, while this one runs
    other = ("-e", "DAGSTER_STACK_PROJECT=intruder", "-e", "DAGSTER_STACK_ID=elsewhere-1")
    refused = stack.compose("run", "--rm", "--no-deps", *other, "init", check=False)

    # Then it ends with both names and the cure, and what is its own again starts as ever
    assert refused.returncode == 1
    said = refused.stdout + refused.stderr
    for words in (stack.project, "intruder (elsewhere-1)", "POSTGRES_DB", "TAKE_OVER=1 make up"):
        assert words in said
    assert stack.compose("run", "--rm", "--no-deps", "init", check=False).returncode == 0
