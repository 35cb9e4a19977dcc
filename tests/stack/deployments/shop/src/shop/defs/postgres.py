"""The dbt project on Postgres: once by what dagster-dbt recommends, and once by a manifest's path."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DbtCliResource, DbtProject, dbt_assets  # type: ignore[import-not-found]

FOLDER = Path(__file__).parents[3] / "postgres"
project = DbtProject(project_dir=FOLDER)
project.prepare_if_dev()


@dbt_assets(manifest=project.manifest_path, exclude="pg_orders_of_a_day")
def tables(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    yield from dbt.cli(["build"], context=context).stream().fetch_row_counts()


@dbt_assets(
    manifest=FOLDER / "target" / "manifest.json",
    select="pg_orders_of_a_day",
    partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-04"),
)
def days(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    yield from dbt.cli(
        ["build", "--vars", json.dumps({"day": context.partition_key})], context=context
    ).stream()


by_day = dg.AssetSelection.assets(days)


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        assets=[tables, days],
        jobs=[
            dg.define_asset_job("everything", dg.AssetSelection.all() - by_day),
            dg.define_asset_job("a_day", by_day),
        ],
        resources={"dbt": DbtCliResource(project_dir=project)},
    )
