"""A write to the project's folder: the error says where to write, and nothing waits for it to come right."""

import sqlite3
import sys
import time
from pathlib import Path

import duckdb
import pytest
from dagster import DagsterInstance, job, op
from dagster._utils import backoff
from dagster._utils.error import serializable_error_info_from_exc_info

from dagster_stack.pool import scratch
from dagster_stack.project import data, read_only
from dagster_stack.project.read_only import explain
from dagster_stack.store import error_chains

CURE = "Write below data/"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, for one test."""
    monkeypatch.setenv(data.VARIABLE, "/opt/data")
    monkeypatch.setattr(error_chains, "explanations", [])
    monkeypatch.setattr(backoff, "backoff", backoff.backoff)
    read_only.use_in_dagster()


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ("OSError: [Errno 30] Read-only file system: 'out.csv'", True),
        ('duckdb.IOException: IO Error: Cannot open file "/opt/x.duckdb": Read-only file system', True),
        ("polars: Read-only file system (os error 30): out.parquet", True),
        ("sqlite3.OperationalError: unable to open database file", True),
        ("sqlite3.OperationalError: attempt to write a readonly database", True),
        (f"PermissionError: [Errno 13] Permission denied: '{Path.cwd()}/file'", True),
        ("PermissionError: [Errno 13] Permission denied: 'file'", True),
        ("PermissionError: [Errno 13] Permission denied: '/opt/data/file'", False),
        ("PermissionError: [Errno 13] Permission denied: '/etc/x'", False),
        ("psycopg2.OperationalError: permission denied for table runs", False),
        ("ValueError: 30", False),
    ],
)
def test_an_error_of_such_a_write_says_where_to_write(text: str, is_told: bool) -> None:
    assert (CURE in (explain(text) or "")) is is_told


def test_elsewhere_than_in_a_container_it_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.VARIABLE)

    assert explain("[Errno 30] Read-only file system: 'x'") is None


def test_a_steps_failure_has_the_cure(instance: DagsterInstance) -> None:
    @op
    def writes() -> None:
        raise OSError(30, "Read-only file system", "out.csv")

    @job
    def writing() -> None:
        writes()

    result = writing.execute_in_process(instance=instance, raise_on_error=False)

    error = result.failure_data_for_node("writes").error  # type: ignore[union-attr]
    assert error
    assert error.cause
    assert CURE in error.cause.message


def test_an_error_at_import_has_it_too() -> None:
    try:
        raise OSError(30, "Read-only file system", "cache")
    except OSError:
        found = serializable_error_info_from_exc_info(sys.exc_info())

    assert CURE in found.message


def test_what_is_said_of_a_full_disk_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch.use_in_errors()
    scratch.use_in_errors()
    read_only.use_in_dagster()

    assert error_chains.explanations == [explain, scratch.explain]


# --- what would wait -----------------------------------------------------------------------------------


def connect_as_dagster_duckdb(database: Path) -> duckdb.DuckDBPyConnection:
    """As DuckDBResource.get_connection and DuckDbClient.connect of dagster-duckdb 0.29 do."""
    from dagster._utils.backoff import backoff

    found: duckdb.DuckDBPyConnection = backoff(
        fn=duckdb.connect,
        retry_on=(RuntimeError, duckdb.IOException),
        kwargs={"database": str(database), "read_only": False},
        max_retries=10,
    )
    return found


def test_duckdbs_resource_does_not_wait_where_it_can_never_write(tmp_path: Path) -> None:
    began = time.monotonic()

    # Given a folder that is not there, and one in which no file can be made even by root
    for folder in (tmp_path / "none", Path("/proc/self")):
        with pytest.raises(duckdb.IOException, match="Cannot open file"):
            connect_as_dagster_duckdb(folder / "x.duckdb")

    assert time.monotonic() - began < 1


@pytest.mark.parametrize("reason", ["Read-only file system", "No such file or directory"])
def test_what_no_repetition_cures_is_tried_once(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    tried: list[int] = []

    def connect() -> None:
        tried.append(1)
        raise duckdb.IOException(f'IO Error: Cannot open file "/x": {reason}')

    with pytest.raises(duckdb.IOException):
        backoff.backoff(connect, retry_on=(duckdb.IOException,))

    assert tried == [1]


def test_a_lock_that_another_step_holds_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    answers = iter(
        [duckdb.IOException("Could not set lock on file"), duckdb.IOException("Could not set lock on file")]
    )

    def connect() -> str:
        for error in answers:
            raise error
        return "connected"

    assert backoff.backoff(connect, retry_on=(duckdb.IOException,)) == "connected"
    assert waited == [0.1]


def test_another_error_is_nobodys_to_repeat() -> None:
    def connect() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        backoff.backoff(connect, retry_on=(sqlite3.Error,))
