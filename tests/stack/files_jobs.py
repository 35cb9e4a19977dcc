"""Jobs that use files and variables as projects do: nothing of this stack but its executor."""

import os
import time
from pathlib import Path

import duckdb
from dagster import Definitions, EnvVar, In, MetadataValue, Nothing, OpExecutionContext, job, op
from dagster._utils.backoff import backoff

from dagster_stack import celery_executor

HEAVY = {"dagster-celery/queue": "heavy"}
FOLDER = Path("data/test-files")


@op
def write(context: OpExecutionContext) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / context.run_id).write_text("from another worker")


@op(ins={"after": In(Nothing)}, tags=HEAVY)
def read(context: OpExecutionContext) -> None:
    file = FOLDER / context.run_id
    assert file.read_text() == "from another worker"
    file.unlink()


@job(executor_def=celery_executor)
def files() -> None:
    read(write())


@op
def write_elsewhere() -> None:
    Path("out.csv").write_text("x")


@op
def open_duckdb_elsewhere() -> None:
    """As DuckDBResource does."""
    backoff(
        duckdb.connect, (RuntimeError, duckdb.IOException), kwargs={"database": "x.duckdb"}, max_retries=10
    )


@job(executor_def=celery_executor)
def elsewhere() -> None:
    write_elsewhere()
    open_duckdb_elsewhere()


@op
def lock(context: OpExecutionContext) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(FOLDER / "one-writer.duckdb")) as connection:
        connection.execute("CREATE OR REPLACE TABLE held AS SELECT 1")
        # Until the reader has met the lock, or does not come.
        for _ in range(300):
            if (FOLDER / f"{context.run_id}-refused").exists():
                return
            time.sleep(0.1)


@op(tags=HEAVY)
def refused(context: OpExecutionContext) -> None:
    for _ in range(300):
        try:
            duckdb.connect(str(FOLDER / "one-writer.duckdb"), read_only=True).close()
        except duckdb.IOException as error:
            if "Could not set lock" in str(error):
                (FOLDER / f"{context.run_id}-refused").touch()
                return
        time.sleep(0.1)
    raise AssertionError("two had it open at once")


@job(executor_def=celery_executor)
def one_writer() -> None:
    lock()
    refused()


@op
def see(context: OpExecutionContext) -> None:
    """Who has which value, without telling it."""
    token = EnvVar("FILES_TOKEN").get_value()
    context.add_output_metadata(
        {
            "token": MetadataValue.text(str(len(token or ""))),
            "hard": MetadataValue.text(str(os.environ.get("FILES_HARD") == 'a$b "c" #d')),
            "broker": MetadataValue.text(str("CELERY_BROKER_URL" in os.environ)),
            "folder": MetadataValue.text(str(Path.cwd())),
        }
    )


@job(executor_def=celery_executor)
def variables() -> None:
    see()


defs = Definitions(jobs=[files, elsewhere, one_writer, variables])
