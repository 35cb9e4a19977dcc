"""Who did what: the table, its upkeep, and `make audit`."""

import asyncio
import io
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import DagsterRun
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from dagster_stack.client import audit as client
from dagster_stack.client.audit import NEWEST, show_audit, time_of
from dagster_stack.errors import DatabaseUnreachable, ExitCode, UsageError
from dagster_stack.store.audit import BATCH, Audit, Deed, acting_for
from scripts.console import ROOT
from tests.unit.holders import Database

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture
def audit(database: Database) -> Audit:
    database.execute("DELETE FROM dagster_stack_audit")
    return Audit(database.engine)


def deed(user: str = "ana", **more: Any) -> Deed:
    values = {
        "role": "admin",
        "address": "192.0.2.1",
        "operation": "deleteRun",
        "target": "run 1f0c",
        "allowed": True,
    }
    return Deed(user, **{**values, **more})


def aged(database: Database, days: float) -> None:
    database.execute(
        "UPDATE dagster_stack_audit SET at = at - make_interval(secs => :secs)", secs=days * 86_400
    )


# --- the table ---------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_told_in_its_order(audit: Audit) -> None:
    for user in ("ana", "otto", "ana"):
        audit.record(deed(user))
    assert [each.user for each in audit.deeds()] == ["ana", "otto", "ana"]
    assert len(audit.deeds(user="ana")) == 2
    assert audit.deeds(user="an") == []
    assert [each.user for each in audit.deeds(limit=2)] == ["otto", "ana"]
    found = audit.deeds()[0]
    assert found.at
    assert abs(found.at - datetime.now(UTC)) < timedelta(minutes=1)


def test_since_is_a_beginning(audit: Audit, database: Database) -> None:
    audit.record(deed("ana"))
    aged(database, 2)
    audit.record(deed("otto"))
    assert [each.user for each in audit.deeds(since=datetime.now(UTC) - timedelta(days=1))] == ["otto"]
    assert len(audit.deeds(since=datetime.now(UTC) - timedelta(days=3))) == 2


def test_any_text_can_be_recorded_and_a_long_one_is_cut(audit: Audit) -> None:
    audit.record(deed(target="run \0\udcff" + "x" * 10_000))
    target = audit.deeds()[0].target
    assert target.startswith("run ␀\\udcffx")
    assert len(target) < 600
    assert "cut" in target


def test_old_rows_go_a_few_at_a_time(audit: Audit, database: Database) -> None:
    database.execute(
        "INSERT INTO dagster_stack_audit (user_name, role, address, operation, target, allowed)"
        " SELECT 'ana', 'admin', '', 'deleteRun', '', true FROM generate_series(1, :rows)",
        rows=2 * BATCH + 1,
    )
    aged(database, 366)
    audit.record(deed("otto"))
    aged(database, 364)
    audit.forget(10_000)
    assert len(audit.deeds()) == 2 * BATCH + 2
    audit.forget(365)
    assert [each.user for each in audit.deeds()] == ["otto"]


# --- the tag of runs ---------------------------------------------------------------------------------------------


def test_a_run_that_is_made_for_a_user_has_their_name(database: Database) -> None:
    runs = database.process().run_storage
    with acting_for("ana"):
        run = runs.add_run(DagsterRun("a_job", tags={"user": "otto", "team": "blue"}))
    assert run.tags == {"user": "ana", "team": "blue"}
    # And one that code makes has what that says
    assert runs.add_run(DagsterRun("a_job", tags={"user": "otto"})).tags == {"user": "otto"}
    assert runs.add_run(DagsterRun("a_job")).tags == {}


def test_so_has_a_backfill(database: Database) -> None:
    runs = database.process().run_storage
    backfill = PartitionBackfill(
        "one", BulkActionStatus.REQUESTED, from_failure=False, tags={"user": "otto"}, backfill_timestamp=1.0
    )
    with acting_for("ana"):
        runs.add_backfill(backfill)
    runs.add_backfill(backfill._replace(backfill_id="two"))
    assert [runs.get_backfill(each).user for each in ("one", "two")] == ["ana", "otto"]  # type: ignore[union-attr]


def test_requests_that_are_answered_at_once_do_not_mix(database: Database) -> None:
    runs = database.process().run_storage

    async def launch(user: str) -> str:
        with acting_for(user):
            await asyncio.sleep(0)
            return runs.add_run(DagsterRun("a_job")).tags["user"]

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(launch(user) for user in ("ana", "otto", "vera")))

    assert asyncio.run(all_at_once()) == ["ana", "otto", "vera"]


# --- make audit --------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a container; the test's database has a socket, and no port that an environment could name."""
    monkeypatch.setattr(client, "url_from_environment", lambda _: database_url)
    return {}


def shown(environment: dict[str, str], user: str | None = None, since: str | None = None, **more: Any) -> str:
    out = io.StringIO()
    assert show_audit(out, user, since, environment=environment, **more) is ExitCode.SUCCESS
    return out.getvalue()


def test_people_read_a_line_a_deed(audit: Audit, environment: dict[str, str]) -> None:
    audit.record(deed("ana"))
    audit.record(
        deed("vera", role="viewer", operation="launchRun", target="job flights\n\x1b[2Jx", allowed=False)
    )

    head, first, second = shown(environment).splitlines()

    assert head.split() == ["WHEN", "(UTC)", "USER", "ROLE", "FROM", "WHAT", "OF"]
    assert first.split()[2:] == ["ana", "admin", "192.0.2.1", "deleteRun", "run", "1f0c"]
    assert second.split()[2:] == [
        "vera",
        "viewer",
        "192.0.2.1",
        "launchRun",
        "job",
        "flights",
        "x",
        "refused",
    ]
    assert f"{datetime.now(UTC):%Y-%m-%d}" in first


def test_one_user_or_time_may_be_asked_for(
    audit: Audit, database: Database, environment: dict[str, str]
) -> None:
    audit.record(deed("ana"))
    aged(database, 2)
    audit.record(deed("otto"))
    assert "otto" not in shown(environment, user="ana")
    assert "ana" not in shown(environment, since="1d")
    assert "ana" in shown(environment, since="3d")
    assert shown(environment, user="nobody") == "Nothing of that is on record.\n"


def test_json_has_all(audit: Audit, environment: dict[str, str]) -> None:
    audit.record(deed("ana"))
    (found,) = json.loads(shown(environment, as_json=True))
    assert datetime.fromisoformat(found.pop("at")).tzinfo
    assert found == {
        "user": "ana", "role": "admin", "address": "192.0.2.1", "operation": "deleteRun", "target": "run 1f0c",
        "allowed": True,
    }  # fmt: skip


def test_the_newest_are_shown_and_how_to_see_more(audit: Audit, environment: dict[str, str]) -> None:
    for number in range(NEWEST + 1):
        audit.record(deed(f"user{number}"))
    lines = shown(environment).splitlines()
    assert f"user{NEWEST} " in lines[NEWEST]
    assert not any("user0 " in line for line in lines)
    assert "SINCE=30d" in lines[-1]
    assert len(shown(environment, since="1h").splitlines()) == NEWEST + 2


def test_nothing_on_record_says_when_there_would_be(audit: Audit, environment: dict[str, str]) -> None:
    assert "LOGIN=on" in shown(environment)


def test_a_database_that_does_not_answer_is_told() -> None:
    values = {"HOST": "127.0.0.1", "PORT": "1", "DB": "d", "USER": "u", "PASSWORD": "p"}
    with pytest.raises(DatabaseUnreachable, match="make up"):
        shown({f"DAGSTER_POSTGRES_{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)), ("10m", timedelta(minutes=10)), ("1h30m", timedelta(hours=1, minutes=30)),
        ("2h", timedelta(hours=2)), ("3d", timedelta(days=3)), ("2w", timedelta(weeks=2)), ("1d2h", timedelta(hours=26)),
    ],
)  # fmt: skip
def test_since_may_be_a_duration(text: str, ago: timedelta) -> None:
    assert time_of(text, NOW) == NOW - ago


def test_since_may_be_a_date_or_a_time() -> None:
    assert time_of("2026-11-29") == datetime(2026, 11, 29, tzinfo=UTC)
    assert time_of("2026-11-29T14:00") == datetime(2026, 11, 29, 14, tzinfo=UTC)
    assert time_of("2026-11-29T14:00+02:00") == NOW
    assert time_of("999999w", NOW).year == 1


@pytest.mark.parametrize("text", ["", "x", "10", "3 days", "m", "-1d", "yesterday"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="10m, 2h, 3d"):
        time_of(text)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_a_user_from_its_command_line_alone() -> None:
    """Each shell has a variable USER."""

    def command(*words: str) -> str:
        result = subprocess.run(
            ["make", "--dry-run", "audit", *words], cwd=ROOT, env={"PATH": "/usr/bin:/bin", "USER": "root"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return " ".join(result.stdout.split())

    assert command() == "python3 -m scripts.run audit"
    assert (
        command("USER=ana", "SINCE=2d", "JSON=1")
        == "python3 -m scripts.run audit --user 'ana' --since '2d' --json"
    )
