"""Retention by itself, in the daemon, and by hand."""

import io
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from dagster_stack.client.retention import retain
from dagster_stack.errors import ExitCode, RetentionFailed, SettingsError
from dagster_stack.retention.housekeeping import (
    AGAIN_SECS,
    DOUBT_SECS,
    INTERVAL_SECS,
    LOOKED,
    Housekeeping,
    retention_of_stack,
)
from dagster_stack.retention.retention import DAY_SECS
from dagster_stack.retention.session import LONGEST_PAUSE_SECS, Pace, alone
from dagster_stack.store.audit import Audit, Deed
from dagster_stack.store.facts import Facts
from dagster_stack.store.instance_storage import make_tables
from tests.unit import old_runs
from tests.unit.holders import Database
from tests.unit.postgres_server import PostgresServer

NUMBER = 60


@pytest.fixture
def old(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database with a few old runs, and no bucket."""
    with postgres.database() as url:
        database = Database(url)
        old_runs.store(database, NUMBER)
        monkeypatch.setattr("dagster_stack.client.retention.url_from_environment", lambda environment: url)
        yield database


def test_a_pass_is_followed_by_the_next_one_an_hour_later(old: Database) -> None:
    retention = retention_of_stack(old.engine, {})
    retention.pace = Pace(lambda seconds: None)
    assert Housekeeping.look(retention, Audit(old.engine)) == INTERVAL_SECS
    assert len(old_runs.runs_of(old)) < NUMBER
    assert Housekeeping.look(retention, Audit(old.engine)) == INTERVAL_SECS


def test_after_a_jump_of_the_clock_it_waits_for_an_hour(old: Database) -> None:
    """A machine whose clock stands in another year until NTP sets it would remove all that there is."""
    retention = retention_of_stack(old.engine, {})
    retention.pace = Pace(lambda seconds: None)
    Facts(old.engine).note(LOOKED, time.time() - 20 * DAY_SECS)
    assert Housekeeping.look(retention, Audit(old.engine)) == DOUBT_SECS
    assert len(old_runs.runs_of(old)) == NUMBER
    # And goes on if it is still so then, or was set back
    for seconds in (DOUBT_SECS, -20 * DAY_SECS):
        Facts(old.engine).note(LOOKED, time.time() - seconds)
        assert Housekeeping.look(retention, Audit(old.engine)) == INTERVAL_SECS
    assert len(old_runs.runs_of(old)) < NUMBER


@pytest.mark.parametrize(("days", "left"), [("", ["ana"]), ("30", []), ("0", ["ana"])])
def test_who_did_what_is_kept_as_long_as_the_setting_says(old: Database, days: str, left: list[str]) -> None:
    # Given something that somebody did 31 days ago
    audit = Audit(old.engine)
    audit.record(Deed(user="ana", role="admin", address="", operation="deleteRun", target="", allowed=True))
    with old.engine.begin() as connection:
        connection.execute(text("UPDATE dagster_stack_audit SET at = at - interval '31 days'"))
    retention = retention_of_stack(old.engine, {"AUDIT_DAYS": days})
    retention.pace = Pace(lambda seconds: None)

    Housekeeping.look(retention, audit)

    assert [deed.user for deed in audit.deeds()] == left


def test_while_a_backup_is_at_work_it_looks_again_later(old: Database) -> None:
    with alone(old.engine) as connection:
        assert connection
        assert Housekeeping.look(retention_of_stack(old.engine, {}), Audit(old.engine)) == AGAIN_SECS
    assert len(old_runs.runs_of(old)) == NUMBER


def test_an_error_is_noted_and_the_daemon_goes_on(old: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the store is away"))

    monkeypatch.setattr("dagster_stack.retention.retention.doom", away)
    assert Housekeeping.look(retention_of_stack(old.engine, {}), Audit(old.engine)) == AGAIN_SECS
    assert Facts(old.engine).read("retention.last")["error"] == "OperationalError"


def test_a_dry_run_says_what_would_go_and_removes_nothing(old: Database) -> None:
    out = io.StringIO()
    assert retain(out, dry_run=True, asks=None, environment={"KEEP_DETAILS_DAYS": "0"}) is ExitCode.SUCCESS
    assert "Old runs are kept 365 days, how their steps were executed for ever" in out.getvalue()
    assert "would free whole runs with their outputs: " in out.getvalue()
    assert len(old_runs.runs_of(old)) == NUMBER


@pytest.mark.parametrize(("answer", "said"), [(False, "nothing was removed"), (True, "freed whole runs")])
def test_it_asks_first(answer: bool, said: str, old: Database) -> None:
    out, asked = io.StringIO(), list[str]()

    def ask(question: str) -> bool:
        asked.append(question)
        return answer

    retain(out, dry_run=False, asks=ask, environment={})
    assert asked == ["Remove all that? There is no way back."]
    assert said in out.getvalue()
    assert (len(old_runs.runs_of(old)) < NUMBER) == answer


def test_with_nothing_to_remove_it_asks_nothing(old: Database) -> None:
    out = io.StringIO()
    environment = {"KEEP_DETAILS_DAYS": "0", "KEEP_RUNS_DAYS": "0"}
    retain(out, dry_run=False, asks=pytest.fail, environment=environment)
    assert "Old runs are kept for ever" in out.getvalue()
    assert "nothing is older than that" in out.getvalue()


def test_a_store_that_is_away_is_told_in_a_sentence(old: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server has gone"))

    monkeypatch.setattr("dagster_stack.retention.retention.doom", away)
    with pytest.raises(RetentionFailed, match=r"call it again\. The store said: the server has gone"):
        retain(io.StringIO(), dry_run=False, asks=None, environment={})


def test_the_daemon_refuses_what_is_no_number_of_days(old: Database) -> None:
    with pytest.raises(SettingsError, match="KEEP_RUNS_DAYS is 'a year'"):
        retention_of_stack(old.engine, {"KEEP_RUNS_DAYS": "a year"})


def test_nine_tenths_of_the_time_are_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = 100.0, list[float]()
    monkeypatch.setattr("dagster_stack.retention.session.time.monotonic", lambda: now)
    pace = Pace(pauses.append, now)
    for took in (0.1, 0.0, 60.0):
        now += took
        pace.pause()
    assert pauses == pytest.approx([0.9, 0.02, LONGEST_PAUSE_SECS])


def options(database: Database, table: str) -> set[str]:
    (row,) = database.execute(
        "SELECT reloptions FROM pg_class WHERE oid = CAST(:table AS regclass)", table=table
    )
    return set(row[0] or ())


def test_the_tables_are_vacuumed_often_and_what_an_operator_has_set_stays(old: Database) -> None:
    assert "autovacuum_vacuum_scale_factor=0.01" in options(old, "event_logs")
    assert not options(old, "asset_keys")
    old.execute("ALTER TABLE event_logs SET (autovacuum_vacuum_scale_factor = 0.3)")
    make_tables(old.url)
    assert "autovacuum_vacuum_scale_factor=0.3" in options(old, "event_logs")
