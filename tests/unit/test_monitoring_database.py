"""The metrics' connection: it reads, and gives up on a server that says nothing."""

import socket
from collections.abc import Iterator

import pytest
import sqlalchemy
from psycopg2 import extensions  # type: ignore[import-untyped]
from sqlalchemy.exc import DBAPIError, OperationalError

from dagster_stack.monitoring import database as module
from dagster_stack.monitoring.database import database


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "ANSWER_SECS", 1)
    yield
    extensions.set_wait_callback(None)


def environment(host: str, port: int) -> dict[str, str]:
    return {
        "DAGSTER_POSTGRES_HOST": host,
        "DAGSTER_POSTGRES_PORT": str(port),
        "DAGSTER_POSTGRES_DB": "dagster",
        "DAGSTER_POSTGRES_USER": "dagster",
        "DAGSTER_POSTGRES_PASSWORD": "secret",
    }


def test_a_server_that_says_nothing_is_given_up() -> None:
    # Given a port that takes connections and never answers, as a paused server's does
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = database(environment("127.0.0.1", silent.getsockname()[1]))
        # Then a connection fails in a second
        with pytest.raises(OperationalError, match="says nothing for 1 s"):
            engine.connect()


def test_nothing_can_be_changed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "url_from_environment", lambda _: database_url)
    engine = database()
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM runs")).scalar_one() >= 0
        with pytest.raises(DBAPIError, match="read-only"):
            connection.execute(sqlalchemy.text("CREATE TABLE mine (id int)"))
    engine.dispose()
