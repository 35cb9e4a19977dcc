"""The definitions of the 50 assets of `old_runs`: partitioned, each with a check."""

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetsDefinition,
    Definitions,
    MaterializeResult,
    StaticPartitionsDefinition,
    asset,
)

ASSETS, PARTITIONS = 50, 8
NAMES = [f"asset_{number}" for number in range(ASSETS)]
CHECK = "is_whole"
PARTITIONED = StaticPartitionsDefinition([f"part_{number}" for number in range(PARTITIONS)])


def made(name: str) -> AssetsDefinition:
    @asset(name=name, partitions_def=PARTITIONED, check_specs=[AssetCheckSpec(CHECK, asset=name)])
    def content() -> MaterializeResult:
        return MaterializeResult(check_results=[AssetCheckResult(passed=True)])

    return content


defs = Definitions(assets=[made(name) for name in NAMES])
