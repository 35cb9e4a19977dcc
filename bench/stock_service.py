"""Dagster as it comes, for a comparison: its webserver, daemon and default launcher in this container.

On the same Postgres, in a schema of their own, so that the stack's daemon does not take their runs.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2  # type: ignore[import-untyped]
import yaml
from dagster import DagsterInstance

from bench.progress import say
from bench.runs import OWN_HOME
from dagster_stack.client.dagit import Dagit
from dagster_stack.errors import DagitError, DagitUnreachable

SCHEMA = "dagster_stack_bench"
PORT = 3100
#: Seconds until the webserver answers with its code loaded, and for the end of a process.
START_SECS, END_SECS = 120, 30
LOCATION = "bench.location"


@contextmanager
def stock_service(interval: int, runs_at_once: int) -> Iterator[tuple[Dagit, DagsterInstance]]:
    """A Dagit with all behind it; `interval` is that of the run queue's looks, in seconds."""
    with ExitStack() as afterwards:
        home = Path(afterwards.enter_context(TemporaryDirectory()))
        write_home(home, interval, runs_at_once)
        # Read by every connection to Postgres: the tables of this instance are in a schema of their own.
        os.environ |= {"DAGSTER_HOME": str(home), "PGOPTIONS": f"-c search_path={SCHEMA}"}
        make_schema()
        afterwards.callback(drop_schema)
        instance = afterwards.enter_context(DagsterInstance.get())
        # Without the user's code, whose sensors and schedules are not to run twice.
        code = ["--module-name", LOCATION]
        daemon = ["dagster-daemon", "run", *code]
        webserver = ["dagster-webserver", "--host", "127.0.0.1", "--port", str(PORT), *code]
        for command in (daemon, webserver):
            afterwards.enter_context(running(command))
        dagit = Dagit(f"http://127.0.0.1:{PORT}")
        wait_until_ready(dagit)
        yield dagit, instance


def write_home(home: Path, interval: int, runs_at_once: int) -> None:
    """This benchmark's dagster.yaml, with a run queue."""
    content = yaml.safe_load((OWN_HOME / "dagster.yaml").read_text(encoding="utf-8"))
    content["run_coordinator"] = {
        "module": "dagster",
        "class": "QueuedRunCoordinator",
        "config": {"max_concurrent_runs": runs_at_once, "dequeue_interval_seconds": interval},
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """A process; its words go to stderr only when it matters."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        except BaseException:
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(END_SECS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(dagit: Dagit) -> None:
    say("starting Dagster's own webserver and daemon")
    until = time.monotonic() + START_SECS
    while True:
        try:
            dagit.find_job("launched_stock")
            if dagit.run_queue().daemon_alive:
                return
        except (DagitError, DagitUnreachable):
            if time.monotonic() > until:
                raise
        time.sleep(1)


def make_schema() -> None:
    drop_schema()
    execute(f"CREATE SCHEMA {SCHEMA}")


def drop_schema() -> None:
    execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def execute(statement: str) -> None:
    connection = psycopg2.connect(
        host=os.environ["DAGSTER_POSTGRES_HOST"],
        port=os.environ["DAGSTER_POSTGRES_PORT"],
        dbname=os.environ["DAGSTER_POSTGRES_DB"],
        user=os.environ["DAGSTER_POSTGRES_USER"],
        password=os.environ["DAGSTER_POSTGRES_PASSWORD"],
    )
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
