"""All that pages about assets ask for: of Dagster's storage, and of Dagit."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterEventType, DagsterInstance
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget
from dagster_graphql.schema import create_schema

from tests.unit import partitioned_assets
from tests.unit.partitioned_assets import CHECK, NAMES, PARTITIONED


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


@contextmanager
def dagit(instance: DagsterInstance) -> Iterator[Callable[[str], dict[str, Any]]]:
    """What Dagit answers about an asset of the definitions."""
    target = PythonFileTarget(
        partitioned_assets.__file__, attribute=None, working_directory=None, location_name="here"
    )
    schema = create_schema()
    with WorkspaceProcessContext(instance, target) as process:

        def asked(name: str) -> dict[str, Any]:
            instance.event_log_storage.wipe_asset_cached_status(AssetKey(name))
            context = process.create_request_context()
            asset = {"asset": {"path": [name]}}
            result = asyncio.run(schema.execute_async(PAGE, context_value=context, variable_values=asset))
            assert not result.errors, result.errors
            return cast(dict[str, Any], result.data)

        yield asked
