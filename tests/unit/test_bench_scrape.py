"""What `make bench` measures of a scrape: on a log of its own beside the stack's tables, which stay as they are."""

from collections.abc import Iterator

import pytest
import sqlalchemy
from psycopg2 import extensions  # type: ignore[import-untyped]

from bench import scrape
from dagster_stack.monitoring import database as module


@pytest.fixture(autouse=True)
def _on(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short log, on a real Postgres."""
    monkeypatch.setattr(module, "url_from_environment", lambda _: database_url)
    for name, value in {"EVENTS": 2000, "SCRAPES": 2, "OPEN_RUNS": 2}.items():
        monkeypatch.setattr(scrape, name, value)
    yield
    extensions.set_wait_callback(None)


def test_a_scrape_is_measured_on_a_log_that_is_gone_afterwards(database_url: str) -> None:
    found = scrape.measure()

    assert found["events"] == 2000
    assert 0 < found["median"] <= found["highest"]
    with sqlalchemy.create_engine(database_url).connect() as connection:
        left = "SELECT (SELECT count(*) FROM event_logs), (SELECT count(*) FROM pg_namespace WHERE nspname = :schema)"
        assert connection.execute(sqlalchemy.text(left), {"schema": scrape.SCHEMA}).one() == (0, 0)
