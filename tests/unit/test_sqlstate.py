"""What an error of Postgres asks for: each code as a real server says it."""

from typing import Any, NoReturn

import pytest
import sqlalchemy
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError, TimeoutError

from dagster_stack.store import connections as database_module
from dagster_stack.store.connections import TRIES, noting_engine, patiently, pooled_engine
from dagster_stack.store.sqlstate import Kind, is_away, is_refusal, is_undone, kind_of, sentence
from tests.unit.clock import Clock
from tests.unit.database_errors import ask_warehouse
from tests.unit.holders import Database

AWAY, AGAIN, WRONG = Kind.AWAY, Kind.AGAIN, Kind.WRONG
KINDS = {
    "08000": AWAY, "08003": AWAY, "08006": AWAY, "08P01": AWAY,
    "25006": AWAY, "25P03": AWAY, "25001": WRONG, "25P02": WRONG,
    "53100": AWAY, "53200": AWAY, "53300": AWAY, "53400": AWAY,
    "57P01": AWAY, "57P02": AWAY, "57P03": AWAY, "57P05": AWAY, "57014": WRONG,
    "58000": AWAY, "58030": AWAY,
    "40001": AGAIN, "40P01": AGAIN, "40002": WRONG, "40003": AWAY, "55P03": AGAIN, "55006": WRONG,
    "22001": WRONG, "22021": WRONG, "22P02": WRONG, "22P05": WRONG, "23502": WRONG, "23505": WRONG, "23514": WRONG,
    "42601": WRONG, "42P01": WRONG, "42804": WRONG, "42501": WRONG,
    "54000": WRONG, "54001": WRONG, "0A000": WRONG, "21000": WRONG, "XX000": WRONG,
    # Nobody's.
    "ZZ999": WRONG,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(database_module, "time", clock)
    return clock


def said(database: Database, code: str) -> SQLAlchemyError:
    """The error with which the server says a code."""
    with pytest.raises(SQLAlchemyError) as found:
        database.execute(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$")
    return found.value


@pytest.mark.parametrize(("code", "kind"), KINDS.items())
def test_each_code_asks_for_one_thing(database: Database, code: str, kind: Kind) -> None:
    error = said(database, code)

    assert kind_of(error) is kind
    assert is_away(error) is (kind is AWAY)
    assert is_refusal(error) is (kind is WRONG)


@pytest.mark.parametrize(
    ("code", "undone"),
    [("25006", True), ("40001", True), ("53100", True), ("08006", False), ("57P01", False)],
)
def test_what_the_server_refused_was_certainly_not_done(database: Database, code: str, undone: bool) -> None:
    assert is_undone(said(database, code)) is undone


def test_no_connection_is_the_servers_absence_and_nothing_was_done() -> None:
    with pytest.raises(OperationalError) as found:
        pooled_engine("postgresql://user:secret@127.0.0.1:1/dagster", 2).connect()

    assert is_away(found.value)
    assert is_undone(found.value)


def test_a_process_whose_connections_all_wait_for_the_server_waits_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "POOL_TIMEOUT_SECS", 0.01)
    engine = pooled_engine(database_url, 1)
    with engine.connect(), pytest.raises(TimeoutError) as found:
        engine.connect()
    engine.dispose()

    assert is_away(found.value)
    assert is_undone(found.value)


def test_an_error_that_was_caused_by_the_database_is_one_of_it(database: Database) -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = said(database, "25006")

    assert is_away(wrapped)


def test_an_error_of_user_codes_own_database_is_none_of_ours() -> None:
    """A warehouse that is away fails the step: that is the user's matter."""
    with pytest.raises(DBAPIError) as found:
        ask_warehouse()
    wrapped = RuntimeError("the resource failed")
    wrapped.__cause__ = found.value

    for error in (found.value, wrapped, TimeoutError("its pool")):
        assert kind_of(error) is None
        assert not is_undone(error)


def test_what_another_transaction_was_in_the_way_of_is_tried_again_at_once(
    database: Database, clock: Clock
) -> None:
    start, tries = clock.now, 0

    def act() -> int:
        nonlocal tries
        tries += 1
        if tries < TRIES:
            raise said(database, "40P01")
        return tries

    assert patiently(act) == TRIES
    assert clock.now - start < 3


def test_what_is_always_in_the_way_is_an_error_soon(database: Database, clock: Clock) -> None:
    start = clock.now
    error = said(database, "40001")

    def act() -> NoReturn:
        raise error

    with pytest.raises(OperationalError):
        patiently(act)

    assert clock.now - start < 5


def test_a_sentence_is_what_postgres_says_with_its_detail_and_hint_and_without_the_statement(
    database: Database,
) -> None:
    with pytest.raises(DBAPIError) as found:
        database.execute(
            "DO $$ BEGIN RAISE EXCEPTION 'too long' USING ERRCODE = '54000', DETAIL = 'the row',"
            " HINT = 'make it shorter'; END $$"
        )

    told = sentence(found.value)
    assert all(part in told for part in ("too long", "the row", "make it shorter"))
    assert "RAISE EXCEPTION" not in told


def test_a_lock_that_is_waited_for_too_long_is_no_absence(database_url: str) -> None:
    """Dagit limits its statements: a page that is too slow must not be read again for minutes."""
    options: Any = {"options": "-c statement_timeout=20"}
    engine = noting_engine(database_url, connect_args=options)
    with engine.connect() as connection, pytest.raises(OperationalError) as found:
        connection.execute(sqlalchemy.text("SELECT pg_sleep(5)"))
    engine.dispose()
    assert kind_of(found.value) is WRONG
