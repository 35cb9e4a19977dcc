"""One connection to Dagster's database that only reads, and that never waits for long."""

import os
import select
from collections.abc import Mapping
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import sqlalchemy
from psycopg2 import extensions
from sqlalchemy.engine import Engine

from dagster_stack.store.connections import url_from_environment

#: Seconds that the server may let a query, or a new connection, wait. A paused server says nothing at all.
ANSWER_SECS = 5


def database(environment: Mapping[str, str] = os.environ) -> Engine:
    """Dagster's database as `DAGSTER_POSTGRES_*` name it. From now on no connection of this process
    waits for longer. Raises UsageError where the environment names none."""
    extensions.set_wait_callback(wait)
    return sqlalchemy.create_engine(
        url_from_environment(environment),
        isolation_level="AUTOCOMMIT",
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={
            "application_name": "dagster-stack metrics",
            # The server gives up as well: a query whose client has gone would go on.
            "options": f"-c default_transaction_read_only=on -c statement_timeout={ANSWER_SECS}s",
        },
    )


def wait(connection: Any) -> None:
    """psycopg2's wait callback, with an end: libpq itself would wait for ever. Raises OperationalError."""
    while (state := connection.poll()) != extensions.POLL_OK:
        reads = [connection] if state == extensions.POLL_READ else []
        writes = [] if reads else [connection]
        if not any(select.select(reads, writes, [], ANSWER_SECS)):
            raise psycopg2.OperationalError(f"Postgres says nothing for {ANSWER_SECS} s")
