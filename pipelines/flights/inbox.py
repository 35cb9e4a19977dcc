"""`inbox`: a CSV put under `inbox/` in the bucket becomes a run, once for each of its versions."""

import json

from dagster import (
    Config,
    DefaultSensorStatus,
    Failure,
    OpExecutionContext,
    RunConfig,
    RunRequest,
    SensorEvaluationContext,
    SensorResult,
    job,
    op,
    sensor,
)
from pydantic import Field

from dagster_stack import ObjectStore
from pipelines.flights.delays import Summary, summarize
from pipelines.flights.job import report
from pipelines.flights.table import checked

PREFIX = "inbox/"
#: Runs asked for by one tick; the rest waits for the next. A tick of thousands would time out half-way.
MOST_RUNS_PER_TICK = 50


class InboxFile(Config):
    """An object and the version of it that this run is about."""

    key: str = Field(description="The object's key, such as inbox/march.csv.")
    etag: str = Field(description="The ETag that the sensor saw: it changes with the content.")
    max_megabytes: int = Field(
        default=256,
        gt=0,
        description="A larger file fails at once. A worker needs twice the file's size free in its TMPDIR,"
        " and about 400 MB of memory for any size.",
    )


@op
def take_file(context: OpExecutionContext, store: ObjectStore, config: InboxFile) -> Summary:
    """Checks a CSV of flights and adds up its good rows; the bad ones go to `rejected/<key>/<etag>.csv`."""
    verify(store, config)
    with checked(store, config.key) as table:
        rejected = table.save_rejected(store, config.etag)
        outcome = table.outcome
        context.add_output_metadata(
            {**outcome.counts(), "ignored_columns": ", ".join(table.extra_columns) or "none", **rejected}
        )
        if not outcome.rows:
            context.log.warning(f"{config.key} has a header and no rows: nothing to add up.")
        elif outcome.rejected == outcome.rows:
            raise Failure(
                f"{config.key}: none of its {outcome.rows:,} rows is a good one:"
                f" {', '.join(reason for reason, _ in outcome.reasons.most_common(3))}.",
                metadata={**outcome.counts(), **rejected},
                allow_retries=False,
            )
        return summarize(table.path)


def verify(store: ObjectStore, file: InboxFile) -> None:
    """A Failure unless the object is a CSV by name, still there, unchanged, and not too large."""

    def failure(problem: str) -> Failure:
        return Failure(f"{file.key}: {problem}", metadata={"file": file.key}, allow_retries=False)

    if not file.key.lower().endswith(".csv"):
        raise failure("only names that end in .csv are taken.")
    found = next((entry for entry in store.list(file.key) if entry.key == file.key), None)
    if found is None:
        raise failure("the object is gone.")
    if found.etag != file.etag:
        raise failure("the object was replaced before this run began; its new version gets a run of its own.")
    if found.size > file.max_megabytes * 1_000_000:
        raise failure(
            f"{found.size / 1_000_000:,.0f} MB are more than max_megabytes ({file.max_megabytes}) in the op's config."
        )


@job
def inbox_flights() -> None:
    """Checks and reports one CSV of flights. The sensor `inbox` fills in its config."""
    report(take_file())


@sensor(job=inbox_flights, minimum_interval_seconds=10, default_status=DefaultSensorStatus.RUNNING)
def inbox(context: SensorEvaluationContext, store: ObjectStore) -> SensorResult:
    """One run of `inbox_flights` for each new or changed object under `inbox/`.

    The run key makes it once: Dagster remembers it even when the cursor is reset. The cursor, the
    versions seen, only spares it the question about every old object at every tick.
    """
    seen: dict[str, str] = json.loads(context.cursor or "{}")
    # A key that ends in / is the folder that an S3 browser shows.
    objects = [entry for entry in store.list(PREFIX) if not entry.key.endswith("/")]
    new = [entry for entry in objects if seen.get(entry.key) != entry.etag][:MOST_RUNS_PER_TICK]
    cursor = {entry.key: seen[entry.key] for entry in objects if entry.key in seen}
    cursor |= {entry.key: entry.etag for entry in new}
    return SensorResult(
        run_requests=[
            RunRequest(
                run_key=f"{entry.key}:{entry.etag}",
                run_config=RunConfig({"take_file": InboxFile(key=entry.key, etag=entry.etag)}),
                tags={"inbox/key": entry.key},
            )
            for entry in new
        ],
        cursor=json.dumps(cursor),
    )
