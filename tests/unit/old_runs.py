"""A stack after two years: 10,000 runs that made partitions of 50 assets, some of which failed, belong together, or go on.

Made by SQL from what Dagster itself would store. Run number N ended 800 - N/20 days ago.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dagster import AssetCheckKey, AssetKey, DagsterEvent, DagsterEventType, DagsterRun, DagsterRunStatus
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationPlanned,
)
from dagster._core.definitions.events import AssetMaterialization
from dagster._core.events import AssetMaterializationPlannedData, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._serdes import serialize_value

from dagster_stack.retention.outputs import Outputs
from dagster_stack.retention.periods import Periods
from dagster_stack.retention.retention import Retention
from dagster_stack.retention.session import Pace
from tests.unit.holders import Database
from tests.unit.partitioned_assets import ASSETS, CHECK, PARTITIONS

RUNS = 10_000
#: The first run that ended less than 365 days ago.
FIRST_YOUNG = 8701
KINDS = DagsterEventType
#: In a year or so nothing has this number of seconds.
WHEN = 1234567.25
PLAN = "plan_of_old"

#: Numbers of runs that failed; they have made nothing.
FAILED = "n % 97 = 0"
UNDER_WAY = (15, 4444)
#: Run 7 was executed again as 1507, and 507 as 9507, which is young.
AGAIN = {1507: 7, 9507: 507}
#: By backfill, its runs: all old; one that is young; one that is still open.
BACKFILLS = {
    "all_old": ("COMPLETED_SUCCESS", [*range(2001, 2031)]),
    "partly_young": ("COMPLETED_SUCCESS", [*range(3001, 3031), 9990]),
    "open": ("REQUESTED", [*range(4001, 4031)]),
}


def event(kind: DagsterEventType | None, data: Any = None, level: int = 20) -> str:
    """As it is stored, of run ~RUN and asset ~ASSET."""
    started = DagsterEvent(KINDS.STEP_START.value, job_name="__ASSET_JOB", step_key="~ASSET")
    said = started._replace(event_type_value=kind.value, event_specific_data=data) if kind else None
    return serialize_value(
        EventLogEntry(
            error_info=None, level=level, user_message="", run_id="~RUN", timestamp=WHEN, step_key="~ASSET",
            job_name="__ASSET_JOB", dagster_event=said,
        )
    )  # fmt: skip


def templates() -> list[tuple[str | None, str, bool, str]]:
    """A run's events in their order: kind, text, whether they are about an asset, and for which runs."""
    key, check = AssetKey("~ASSET"), AssetCheckKey(AssetKey("~ASSET"), CHECK)
    tags = {"dagster/data_version": "~RUN"}
    made = AssetMaterialization(
        key, partition="~PART", tags=tags, metadata={"uri": "s3://bucket/storage/storage/~RUN/kept/result"}
    )
    found: list[tuple[DagsterEventType | None, Any, bool, str]] = [
        (KINDS.RUN_ENQUEUED, None, False, "true"),
        (KINDS.ASSET_MATERIALIZATION_PLANNED, AssetMaterializationPlannedData(key, partition="~PART"), True, "true"),
        (KINDS.ASSET_CHECK_EVALUATION_PLANNED, AssetCheckEvaluationPlanned(asset_key=key, check_name=check.name), False, "true"),
        (KINDS.RUN_START, None, False, "true"),
        (KINDS.ENGINE_EVENT, None, False, "true"),
        (KINDS.STEP_WORKER_STARTING, None, False, "true"),
        (KINDS.STEP_START, None, False, "true"),
        (None, None, False, "true"),
        (KINDS.ASSET_MATERIALIZATION, StepMaterializationData(made), True, "NOT failed"),
        (KINDS.ASSET_CHECK_EVALUATION, AssetCheckEvaluation(key, check.name, True, {}), False, "NOT failed"),
        (KINDS.STEP_SUCCESS, None, False, "NOT failed"),
        (KINDS.STEP_FAILURE, None, False, "failed"),
        (KINDS.RUN_SUCCESS, None, False, "NOT failed"),
        (KINDS.RUN_FAILURE, None, False, "failed"),
    ]  # fmt: skip
    return [
        (kind.value if kind else None, event(kind, data, 20 if kind else 10), of_asset, which)
        for kind, data, of_asset, which in found
    ]


FILLED = f"""
    replace(replace(replace(replace(CAST(:text AS text), '~RUN', run), '~ASSET', asset), '~PART', part), '{WHEN}', ended)
"""
AT = "(to_timestamp(CAST(ended AS float)) AT TIME ZONE 'utc')"


def store(database: Database, number: int = RUNS) -> None:
    """Store all of it, or the first of these runs; their ids are run_1 to run_10000."""
    execute = database.execute
    under_way = ", ".join(map(str, UNDER_WAY))
    execute(
        f"""
        CREATE TABLE world AS
        SELECT n, 'run_' || n AS run, 'asset_' || (n % {ASSETS}) AS asset,
            -- Some partitions were made once, long ago.
            'part_' || CASE WHEN n < 3000 THEN (n / {ASSETS}) % {PARTITIONS} ELSE (n / {ASSETS}) % 5 END AS part,
            CAST(extract(epoch FROM now()) - 86400 * (800.0 - n / 20.0) AS text) AS ended,
            {FAILED} AS failed, n IN ({under_way}) AS under_way
        FROM generate_series(1, {number}) AS n
        """
    )
    run = DagsterRun(
        "__ASSET_JOB", run_id="~RUN", status=DagsterRunStatus.SUCCESS, execution_plan_snapshot_id=PLAN
    )
    for name, parent in (("job_of_old", "parent_of_old"), ("parent_of_old", None), ("job_of_young", None)):
        body = zlib.compress(json.dumps({"parent_snapshot_id": parent or 1}).encode())
        execute(
            "INSERT INTO snapshots (snapshot_id, snapshot_body, snapshot_type) VALUES (:name, :body, 'PIPELINE')",
            name=name, body=body,
        )  # fmt: skip
    execute(
        "INSERT INTO snapshots (snapshot_id, snapshot_body, snapshot_type) VALUES (:name, '', 'EXECUTION_PLAN')",
        name=PLAN,
    )
    execute(
        f"""
        INSERT INTO runs (run_id, pipeline_name, status, run_body, create_timestamp, update_timestamp, start_time,
            end_time, snapshot_id, partition)
        SELECT run, '__ASSET_JOB', status,
            replace(replace(CAST(:text AS text), '~RUN', run), '"SUCCESS"', '"' || status || '"'), {AT}, {AT},
            CAST(ended AS float), CASE WHEN NOT under_way THEN CAST(ended AS float) END,
            CASE WHEN n < 1000 AND NOT under_way AND n != 507 THEN 'job_of_old' ELSE 'job_of_young' END, part
        FROM (
            SELECT *, CASE WHEN under_way THEN 'STARTED' WHEN failed THEN 'FAILURE' ELSE 'SUCCESS' END AS status
            FROM world ORDER BY n
        ) AS each
        """,
        text=serialize_value(run),
    )
    for child, root in ((child, root) for child, root in AGAIN.items() if child <= number):
        for key in ("dagster/root_run_id", "dagster/parent_run_id"):
            execute(
                "INSERT INTO run_tags (run_id, key, value) VALUES (:run, :key, :root)",
                run=f"run_{child}", key=key, root=f"run_{root}",
            )  # fmt: skip
    for name, (status, numbers) in BACKFILLS.items():
        execute(
            "UPDATE runs SET backfill_id = :name WHERE run_id = ANY(:runs)",
            name=name,
            runs=[f"run_{number}" for number in numbers],
        )
        execute(
            "INSERT INTO bulk_actions (key, status, timestamp, body)"
            " VALUES (:name, :status, now() - interval '500 days', '{}')",
            name=name, status=status,
        )  # fmt: skip
        execute("INSERT INTO backfill_tags (backfill_id, key, value) VALUES (:name, 'a', 'b')", name=name)
    every = templates()
    parts = " UNION ALL ".join(
        f"SELECT n, {place} AS place, {FILLED.replace(':text', f':text_{place}')} AS event,"
        f" {f':kind_{place}' if kind else 'NULL'} AS kind, {of_asset} AS of_asset FROM world WHERE {which}"
        for place, (kind, _, of_asset, which) in enumerate(every)
    )
    values = {f"text_{place}": text for place, (_, text, _, _) in enumerate(every)}
    values |= {f"kind_{place}": kind for place, (kind, *_) in enumerate(every) if kind}
    execute(
        f"""
        INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
        SELECT run, event, kind, {AT}, asset, CASE WHEN of_asset THEN '["' || asset || '"]' END,
            CASE WHEN of_asset THEN part END
        FROM ({parts}) AS each JOIN world USING (n) ORDER BY n, place
        """,
        **values,
    )
    execute(
        f"""
        INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)
        SELECT id, asset_key, 'dagster/data_version', run_id, timestamp FROM event_logs
        WHERE dagster_event_type = '{KINDS.ASSET_MATERIALIZATION.value}'
        """
    )
    execute(
        f"""
        INSERT INTO asset_check_executions (asset_key, check_name, run_id, execution_status, evaluation_event,
            evaluation_event_timestamp, evaluation_event_storage_id, create_timestamp)
        SELECT '["' || step_key || '"]', '{CHECK}', run_id,
            CASE dagster_event_type WHEN '{KINDS.ASSET_CHECK_EVALUATION.value}' THEN 'SUCCEEDED' ELSE 'PLANNED' END,
            event, timestamp, id, timestamp
        FROM (
            SELECT DISTINCT ON (run_id) * FROM event_logs WHERE dagster_event_type LIKE 'ASSET_CHECK_EVALUATION%'
            ORDER BY run_id, id DESC
        ) AS last ORDER BY id
        """
    )
    execute(
        """
        INSERT INTO asset_keys (asset_key, last_materialization, last_run_id, last_materialization_timestamp)
        SELECT asset_key,
            '{"__class__": "EventLogRecord", "event_log_entry": ' || event || ', "storage_id": ' || id || '}',
            (SELECT run_id FROM event_logs AS planned WHERE planned.asset_key = last.asset_key ORDER BY id DESC LIMIT 1),
            timestamp
        FROM (
            SELECT DISTINCT ON (asset_key) * FROM event_logs
            WHERE dagster_event_type = 'ASSET_MATERIALIZATION' ORDER BY asset_key, id DESC
        ) AS last
        """
    )
    execute(
        "INSERT INTO dagster_stack_claims (run_id, step_key, attempt, epoch, holder)"
        " SELECT run, asset, 1, 1, 'nobody' FROM world"
    )
    execute("ANALYZE")


@dataclass
class BucketInMemory:
    """The two requests that retention makes, and what is there."""

    objects: dict[str, int] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def get_paginator(self, _: str) -> "BucketInMemory":
        return self

    def paginate(self, **named: str) -> Iterator[dict[str, Any]]:
        yield {"Contents": [{"Key": key, "Size": size} for key, size in self._under(named["Prefix"])]}

    def _under(self, prefix: str) -> list[tuple[str, int]]:
        # A look into all objects would take a minute for 10,000 runs.
        names = (f"{prefix}{rest}" for rest in ("step/result", "kept/result", "compute_logs/a.out"))
        return [(name, self.objects[name]) for name in names if name in self.objects]

    def delete_object(self, **named: str) -> None:
        self.deleted.append(named["Key"])
        self.objects.pop(named["Key"], None)


USERS = {
    "storage/@assets/asset_1.pickle": 5,
    "inbox/run_1/step/result": 6,
    "storage/storage/run_1x/step/result": 7,
}


def bucket_of_old_runs() -> BucketInMemory:
    names = [f"run_{number}" for number in range(1, RUNS + 1)]
    objects = {f"storage/storage/{name}/{each}/result": 100 for name in names for each in ("step", "kept")}
    logs = {f"logs/storage/{name}/compute_logs/a.out": 10 for name in names}
    return BucketInMemory({**objects, **logs, **USERS})


def retention(
    database: Database, bucket: BucketInMemory | None = None, details: int = 30, runs: int = 365
) -> Retention:
    outputs = Outputs(bucket or BucketInMemory(), "bucket", "storage", "logs")
    return Retention(database.engine, outputs, Periods(details, runs), Pace(lambda seconds: None))


def runs_of(database: Database) -> set[int]:
    return {int(row[0].removeprefix("run_")) for row in database.execute("SELECT run_id FROM runs")}


TABLES = ("runs", "run_tags", "event_logs", "asset_event_tags", "asset_check_executions", "snapshots",
          "bulk_actions", "backfill_tags", "dagster_stack_claims")  # fmt: skip


def rows_of(database: Database) -> dict[str, int]:
    """A hash over the rows of each table."""
    return {
        table: database.execute(
            f"SELECT sum(hashtextextended(CAST(t AS text), 0)), count(*) FROM {table} AS t"
        )[0]
        for table in TABLES
    }
