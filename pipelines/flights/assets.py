"""The same data as assets: a partition is a month, so a backfill of the year is twelve runs."""

from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    DataVersion,
    MaterializeResult,
    MetadataValue,
    MonthlyPartitionsDefinition,
    ObserveResult,
    Output,
    SourceAsset,
    asset,
    asset_check,
    define_asset_job,
    observable_source_asset,
)

from dagster_stack import ObjectStore
from pipelines.flights import source
from pipelines.flights.delays import Summary, summarize
from pipelines.flights.report import publish
from pipelines.flights.table import checked

MONTHS = MonthlyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-01")
PREVIEW_ROWS = 5


def raw_table(name: str, file: str, description: str) -> SourceAsset:
    """A file of the package, which is in every worker's image: observed, never made."""

    @observable_source_asset(name=name, group_name="raw", description=description)
    def observed() -> ObserveResult:
        path = source.raw_file(file)
        version = DataVersion(sha256(path.read_bytes()).hexdigest()[:16])
        metadata: dict[str, Any] = {"bytes": path.stat().st_size, "file": file}
        if path.suffix == ".csv":
            lines = path.read_text().splitlines()
            metadata |= {"dagster/row_count": len(lines) - 1, "preview": preview(lines)}
        return ObserveResult(data_version=version, metadata=metadata)

    return observed


def preview(lines: list[str]) -> MetadataValue:
    """The first rows of a CSV as a Markdown table."""
    header, *rows = (line.split(",") for line in lines[: PREVIEW_ROWS + 1])
    cells = [header, ["---"] * len(header), *rows]
    return MetadataValue.md("\n".join(f"| {' | '.join(row)} |" for row in cells))


year_of_flights = raw_table("year_of_flights", "flights.csv.zip", "All flights of 2013, zipped.")
airlines = raw_table("airlines", "airlines.csv", "The names of the airlines.")
weather = raw_table("weather", "weather.csv", "Hourly weather at the three airports.")


def partition_month(context: AssetExecutionContext) -> int:
    return int(context.partition_key[5:7])


def checked_key(month: int) -> str:
    """Where a month's checked rows lie in the object store."""
    return f"checked/flights/{source.month_name(month)}.parquet"


@asset(partitions_def=MONTHS, group_name="flights", deps=[year_of_flights], kinds={"csv", "s3"})
def raw_flights(context: AssetExecutionContext, store: ObjectStore) -> MaterializeResult:
    """A month's rows as they came, taken out of the year's zip."""
    month = partition_month(context)
    table = source.month_tables([month])[month]
    store.put(source.month_key(month), table, "text/csv")
    lines = table.decode().splitlines()
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(lines) - 1,
            "object": store.uri(source.month_key(month)),
            "preview": preview(lines),
        }
    )


@asset(partitions_def=MONTHS, group_name="flights", deps=[raw_flights], kinds={"duckdb", "parquet"})
def checked_flights(context: AssetExecutionContext, store: ObjectStore) -> MaterializeResult:
    """A month's rows with their types, each marked used, cancelled or rejected with its fault."""
    month = partition_month(context)
    with checked(store, source.month_key(month)) as table:
        with table.path.open("rb") as file:
            store.put(checked_key(month), file)
        return MaterializeResult(
            metadata={
                "dagster/row_count": table.outcome.rows,
                **table.outcome.counts(),
                **table.save_rejected(store),
                "object": store.uri(checked_key(month)),
            }
        )


@asset(
    partitions_def=MONTHS, group_name="flights", deps=[checked_flights, weather], kinds={"duckdb", "python"}
)
def monthly_delays(context: AssetExecutionContext, store: ObjectStore) -> Output[Summary]:
    """A month's delays by airline, day, hour and weather."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checked.parquet"
        with path.open("wb") as file:
            store.download(checked_key(partition_month(context)), file)
        summary = summarize(path)
    return Output(summary, metadata={**summary.outcome.counts(), "groups": len(summary.totals)})


@asset(
    group_name="flights",
    # Months that are not there yet are left out, and the check then says that rows are missing.
    ins={"monthly_delays": AssetIn(metadata={"allow_missing_partitions": True})},
    deps=[airlines],
    kinds={"matplotlib", "html"},
)
def delay_report(
    context: AssetExecutionContext, store: ObjectStore, monthly_delays: dict[str, Summary]
) -> Output[Summary]:
    """The year's report over all months."""
    year = sum(monthly_delays.values(), Summary())
    prefix = f"reports/delay_report/{context.run.run_id}"
    metadata = publish(store, year, prefix, "Delays of flights from New York")
    return Output(year, metadata={**metadata, "months": len(monthly_delays)})


@asset_check(asset=delay_report)
def delay_report_accounts_for_all_rows(delay_report: Summary) -> AssetCheckResult:
    """Every row of the raw table, counted anew, is used, cancelled or rejected in the report."""
    rows = sum(table.count(b"\n") - 1 for table in source.month_tables(source.MONTHS).values())
    outcome = delay_report.outcome
    return AssetCheckResult(
        passed=outcome.rows == rows == source.ROWS,
        metadata={"rows_in_raw_table": rows, **outcome.counts()},
        description=f"{outcome.rows:,} of {rows:,} rows are accounted for.",
    )


ASSETS: list[AssetsDefinition | SourceAsset] = [
    year_of_flights,
    airlines,
    weather,
    raw_flights,
    checked_flights,
    monthly_delays,
    delay_report,
]

flights_by_month = define_asset_job(
    "flights_by_month",
    selection=[raw_flights, checked_flights, monthly_delays],
    description="A month from raw rows to delays. Backfill all 12 months, then materialize `delay_report`.",
)
