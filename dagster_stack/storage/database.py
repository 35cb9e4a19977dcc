"""A process's connections to Postgres: a few that are kept, and patience while the server is away."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from dagster_stack.errors import UsageError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

#: Where the database is, in the order of host, port, name, user, password.
VARIABLES = tuple(f"DAGSTER_POSTGRES_{name}" for name in ("HOST", "PORT", "DB", "USER", "PASSWORD"))
#: Connections that a process keeps at most: one that works, one for the thread that writes events.
DEFAULT_CONNECTIONS = 2
#: Seconds that a caller waits while the server is away. A restart takes seconds, crash recovery minutes.
PATIENCE_SECS = 180
#: Seconds between two tries while it is away.
RETRY_SECS = 0.5
#: Seconds that opening one connection may take.
CONNECT_TIMEOUT_SECS = 10
#: Seconds that a caller waits for a free connection of its own process.
POOL_TIMEOUT_SECS = 60

#: What Postgres says when a lock, or a statement, has taken longer than its connection allows (Dagit's do).
TOO_SLOW = {"55P03", "57014"}


def url_from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """The address of Dagster's database as dagster.yaml names it, with its password. Raises UsageError."""
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise UsageError(
            f"{missing[0]} is not set: this is no container of the stack (make's targets use those)."
        )
    host, port, database, user, password = (environment[name] for name in VARIABLES)
    url = sqlalchemy.URL.create("postgresql+psycopg2", user, password, host, int(port), database)
    return url.render_as_string(hide_password=False)


@cache
def pooled_engine(url: str, connections: int) -> Engine:
    """The process's engine for a database: run, event and schedule storage share its connections."""
    return sqlalchemy.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECS,
        # A connection that died with a restarted server is replaced before it is used.
        pool_pre_ping=True,
        pool_use_lifo=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECS,
            # So that the server's list of connections tells whose each one is.
            "application_name": f"dagster-stack {os.getpid()}",
        },
    )


# A forked process must not share its parent's connections.
os.register_at_fork(after_in_child=pooled_engine.cache_clear)


class PatientConnection(Connection):
    """A connection on which a read that breaks with it is tried again, on another one of the pool.

    Not within a transaction, which would have to begin again; and nobody knows of a write whether it was done.
    """

    def execute(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        if self.in_transaction() or not getattr(statement, "is_select", False):
            return super().execute(statement, parameters, execution_options=execution_options)
        read = partial(super().execute, statement, parameters, execution_options=execution_options)

        def read_again() -> Any:
            # Forgets what broke: the next statement opens a connection.
            self.rollback()
            return read()

        try:
            result = read()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            result = patiently(read_again)
        # It has the rows. Statements commit by themselves; for SQLAlchemy a transaction has begun with this one.
        self.commit()
        return result


@contextmanager
def patient_connection(engine: Engine, patience: float = PATIENCE_SECS) -> Iterator[Connection]:
    """A connection of the pool; waits while the server is away, then raises SQLAlchemy's OperationalError."""
    connection = patiently(lambda: PatientConnection(engine), patience)
    try:
        yield connection
    finally:
        connection.close()


def patiently(act: Callable[[], Result], patience: float = PATIENCE_SECS) -> Result:
    """What `act` returns; tried again while the database server is away."""
    until = time.monotonic() + patience
    away = False
    while True:
        try:
            result = act()
        except DBAPIError as error:
            if not server_is_away(error) or time.monotonic() > until:
                raise
            if not away:
                logger.warning(
                    "Postgres is away, trying for %.0f s: %s",
                    patience,
                    error.orig,
                    extra={"action": "database.away"},
                )
            away = True
            time.sleep(RETRY_SECS)
        else:
            if away:
                logger.warning("Postgres is back", extra={"action": "database.back"})
            return result


def server_is_away(error: DBAPIError) -> bool:
    """Whether the server, or its connection, is gone or full, rather than the statement wrong or too slow."""
    if error.connection_invalidated:
        return True
    return isinstance(error, OperationalError) and getattr(error.orig, "pgcode", None) not in TOO_SLOW
