"""Retention and backups exclude each other by a lock of Dagster's database, as the programs of both have it."""

import os
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
from backup import database as backup
from backup.errors import Failure
from backup.settings import Settings

from dagster_stack.retention.session import alone, is_awaited
from tests.unit.holders import Database
from tests.unit.postgres_server import INSTALL, package
from tests.waiting import wait_until

END_THE_SESSION = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'psql'"


@pytest.fixture
def settings(database: Database, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a backup of this database."""
    address, installed = urlsplit(database.url), package()
    assert installed
    monkeypatch.setenv("PATH", f"{installed / INSTALL / 'bin'}:{os.environ['PATH']}")
    (folder,) = parse_qs(address.query)["host"]
    monkeypatch.setattr(backup, "SOCKET", (f"--host={folder}", "--username=postgres"))
    return Settings.read(
        {"BACKUP_KEY": "abc", "S3_BUCKET": "dagster", "POSTGRES_DB": address.path.strip("/")}
    )


def hold(database: Database) -> None:
    with alone(database.engine, wait=True) as connection:
        assert connection


def test_nothing_is_removed_while_a_point_is_made(settings: Settings, database: Database) -> None:
    with backup.without_retention(settings), alone(database.engine) as connection:
        assert connection is None
    with alone(database.engine) as connection:
        assert connection


def test_it_waits_until_retention_makes_way(settings: Settings, database: Database) -> None:
    def make() -> str:
        with backup.without_retention(settings):
            return "made"

    with ThreadPoolExecutor() as threads:
        with alone(database.engine) as connection:
            assert connection
            point = threads.submit(make)
            wait_until(lambda: is_awaited(connection), 20, "the backup waits")
        assert point.result(20) == "made"


def test_a_retention_that_makes_no_way_is_told_with_the_cure(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "WAY_SECS", 1)
    with (
        alone(database.engine),
        pytest.raises(Failure, match="makes no way for a backup: `make logs SERVICE=daemon`"),
        backup.without_retention(settings),
    ):
        pytest.fail("without the lock")


def test_a_point_whose_lock_was_lost_is_none(settings: Settings, database: Database) -> None:
    with pytest.raises(Failure, match="Postgres does not answer"), backup.without_retention(settings):
        database.execute(END_THE_SESSION)


def test_a_server_that_hangs_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a psql that says nothing
    monkeypatch.setattr(backup, "PSQL", ("sh", "-c", "exec sleep 60"))
    monkeypatch.setattr(backup, "ANSWER_SECS", 0.2)
    with pytest.raises(Failure, match="Postgres does not answer"), backup.without_retention(settings):
        pytest.fail("without the lock")


def test_what_a_point_fails_of_is_told_and_the_lock_is_free(settings: Settings, database: Database) -> None:
    with pytest.raises(ZeroDivisionError), backup.without_retention(settings):
        raise ZeroDivisionError
    with ThreadPoolExecutor() as threads:
        threads.submit(hold, database).result(20)
