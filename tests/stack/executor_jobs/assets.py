"""Assets and checks."""

from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    AssetSpec,
    DataVersion,
    MaterializeResult,
    MetadataValue,
    SourceAsset,
    StaticPartitionsDefinition,
    asset,
    asset_check,
    define_asset_job,
    graph_asset,
    multi_asset,
    observable_source_asset,
)

from .data import follow, source

regions = StaticPartitionsDefinition(["north", "south"])


@asset(partitions_def=regions)
def region(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset(partitions_def=regions)
def region_report(region: str) -> MaterializeResult[str]:
    return MaterializeResult(value=region, metadata={"of": MetadataValue.text(region)})


@multi_asset(specs=[AssetSpec(name, skippable=True) for name in ("alpha", "beta", "gamma")], can_subset=True)
def family(context: AssetExecutionContext) -> Iterator[MaterializeResult[str]]:
    for key in sorted(context.selected_asset_keys):
        yield MaterializeResult(asset_key=key)


@asset(deps=["beta"])
def child() -> None:
    pass


@asset
def suspicious() -> int:
    return 1


@asset_check(asset=suspicious, blocking=True)
def must_hold(suspicious: int) -> AssetCheckResult:
    return AssetCheckResult(passed=suspicious > 1)


@asset
def built_on_suspicious(suspicious: int) -> int:
    return suspicious


@asset
def noted() -> int:
    return 1


@asset_check(asset=noted)
def may_fail(noted: int) -> AssetCheckResult:
    return AssetCheckResult(passed=noted > 1, severity=AssetCheckSeverity.WARN)


@asset
def built_on_noted(noted: int) -> int:
    return noted


@observable_source_asset
def watched() -> DataVersion:
    return DataVersion("17")


@graph_asset
def from_graph() -> Any:
    return follow(source())


#: Partitions that once shared objects, or had none.
AWKWARD = StaticPartitionsDefinition(["a/b", "a//b", "2024", "2024/", "./a", "a", "s3://bucket/in/a.csv"])
NESTED = [["b29"], ["b29", "orders"], ["b29/orders"]]


@asset(partitions_def=AWKWARD)
def awkward(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset
def awkward_together(context: AssetExecutionContext, awkward: dict[str, str]) -> None:
    context.add_output_metadata({"loaded": awkward})


@multi_asset(outs={f"nested_{place}": AssetOut(key=AssetKey(key)) for place, key in enumerate(NESTED)})
def nested_names():  # type: ignore[no-untyped-def]
    return tuple(range(len(NESTED)))


ASSETS: list[AssetsDefinition | SourceAsset] = [
    awkward,
    awkward_together,
    nested_names,
    region,
    region_report,
    family,
    child,
    suspicious,
    built_on_suspicious,
    noted,
    built_on_noted,
    watched,
    from_graph,
]
CHECKS = [must_hold, may_fail]
JOBS = [
    define_asset_job("partitioned", ["region", "region_report"]),
    define_asset_job("families", ["alpha", "beta", "gamma", "child"]),
    define_asset_job("checked", ["suspicious", "built_on_suspicious", "noted", "built_on_noted"]),
    define_asset_job("observing", ["watched"]),
    define_asset_job("graph_assets", ["from_graph"]),
    define_asset_job("awkward_parts", [awkward]),
    define_asset_job("awkward_whole", [awkward_together]),
    define_asset_job("nested_names", [nested_names]),
]
