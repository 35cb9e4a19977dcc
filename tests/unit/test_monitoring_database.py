"""The metrics' connection: it reads, and gives up on a server that says nothing."""

import json
import socket
from collections.abc import Iterator

import pytest
import sqlalchemy
from psycopg2 import extensions  # type: ignore[import-untyped]
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from dagster_stack.client.worker_feed import FACT
from dagster_stack.monitoring import database as module
from dagster_stack.monitoring import gauges
from dagster_stack.monitoring.database import database
from dagster_stack.monitoring.sample_index import Samples
from dagster_stack.store.connections import pooled_engine
from dagster_stack.store.facts import NOTE
from tests.unit.postgres_server import PostgresServer


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


def test_connections_of_other_databases_count_since_they_share_the_servers_limit(
    postgres: PostgresServer,
) -> None:
    question = next(each for each in gauges.QUESTIONS if each.name == "dagster_database_connections")

    def counted(connection: Connection) -> float:
        return sum(sample.value for sample in question.answer(connection).samples)

    with postgres.database() as url, postgres.database() as other:
        mine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with mine.connect() as connection:
            before = counted(connection)
            # When somebody connects to another database of the server, then one more is counted
            theirs = sqlalchemy.create_engine(other)
            with theirs.connect():
                assert counted(connection) == before + 1
            theirs.dispose()
        mine.dispose()


def test_nothing_can_be_changed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "url_from_environment", lambda _: database_url)
    engine = database()
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM runs")).scalar_one() >= 0
        with pytest.raises(DBAPIError, match="read-only"):
            connection.execute(sqlalchemy.text("CREATE TABLE mine (id int)"))
    engine.dispose()


@pytest.mark.parametrize(("age", "is_there"), [("1 second", True), ("2 minutes", False)])
def test_what_make_autoscale_noted_is_a_figure_while_it_runs(
    database_url: str, age: str, is_there: bool
) -> None:
    engine = pooled_engine(database_url, 1)
    note = {
        "worker": {
            "wish": 5,
            "running": 3,
            "least": 1,
            "most": 8,
            "reason": "memory",
            "hosts": {"box2": 2, "box3": 0},
        },
        "worker-heavy": {
            "wish": 1,
            "running": 1,
            "least": 0,
            "most": 1,
            "reason": "memory",
            "hosts": {"box2": 1},
        },
    }
    old = "UPDATE dagster_stack_facts SET noted_at = now() - CAST(:age AS interval) WHERE name = :name"
    gone = "DELETE FROM dagster_stack_facts WHERE name = :name"
    with engine.connect() as connection:
        connection.execute(NOTE, {"name": FACT, "value": json.dumps(note)})
        connection.execute(sqlalchemy.text(old), {"age": age, "name": FACT})
        try:
            found = Samples(gauges.figures(connection))
        finally:
            connection.execute(sqlalchemy.text(gone), {"name": FACT})
    engine.dispose()

    numbers = {"wish": 5, "running": 3, "least": 1, "most": 8} if is_there else {}
    assert found.by("dagster_autoscale_workers", "number", service="worker") == numbers
    assert found.labels("dagster_autoscale_reason", "reason") == ({"memory"} if is_there else set())
    assert (found.by("dagster_autoscale_host_workers", "host") or {}) == (
        {"box2": 3, "box3": 0} if is_there else {}
    )
