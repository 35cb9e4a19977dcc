"""A process's connections to Postgres: a few that are kept, and patience while the server is away."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.exc import SQLAlchemyError, TimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection, QueuePool

from dagster_stack.errors import UsageError
from dagster_stack.forks import keep_from_children
from dagster_stack.store.sqlstate import READ_ONLY, Kind, is_undone, kind_of, note
from dagster_stack.timing import PATIENCE_SECS, UNACKNOWLEDGED_SECS

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

#: Where the database is, in the order of host, port, name, user, password.
VARIABLES = tuple(f"DAGSTER_POSTGRES_{name}" for name in ("HOST", "PORT", "DB", "USER", "PASSWORD"))
#: Connections that a process keeps at most: one that works, one for the thread that writes events.
DEFAULT_CONNECTIONS = 2
#: The same in this process: for its callers, and for writes that the server refuses, as a read-only one does. Dagit sets
#: less: its users wait.
default_patience: float = PATIENCE_SECS
write_patience: float = PATIENCE_SECS
#: Seconds between two tries while it is away.
RETRY_SECS = 0.5
#: Seconds that opening one connection may take.
CONNECT_TIMEOUT_SECS = 10
#: What ends a connection whose other side is gone without a word, while it waits for an answer too (libpq's names; seconds, and
#: milliseconds for the last one).
END_WHEN_ALONE = {
    "keepalives_idle": UNACKNOWLEDGED_SECS // 2,
    "keepalives_interval": UNACKNOWLEDGED_SECS // 4,
    "keepalives_count": 2,
    "tcp_user_timeout": UNACKNOWLEDGED_SECS * 1000,
}
#: Seconds that a caller waits for a free connection of its own process.
POOL_TIMEOUT_SECS = 60
#: Tries when another transaction is in the way, and seconds before the second one; each pause is twice as long.
TRIES = 6
PAUSE_SECS = 0.02


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


class NotingPool(QueuePool):
    """Marks its own error, which no engine sees: no connection was free in time."""

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except TimeoutError as error:
            note(error, is_sent=False)
            raise


def noting_engine(url: str | sqlalchemy.URL, **options: Any) -> Engine:
    """An engine for Dagster's database: its errors are told from those of user code's own databases."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", **options)
    sqlalchemy.event.listen(engine, "handle_error", note_error)
    return engine


@cache
def pooled_engine(url: str, connections: int) -> Engine:
    """The process's engine for a database: run, event and schedule storage share its connections."""
    engine = noting_engine(
        url,
        poolclass=NotingPool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECS,
        # A connection that died with a restarted server is replaced before it is used.
        pool_pre_ping=True,
        pool_use_lifo=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECS,
            **END_WHEN_ALONE,
            # The server's list of connections shows this name.
            "application_name": f"dagster-stack {os.getpid()}",
        },
    )
    sqlalchemy.event.listen(engine, "connect", lambda connection, _: keep_from_children(connection))
    sqlalchemy.event.listen(engine, "checkin", leave_no_transaction)
    _engines.append(engine)
    return engine


def leave_no_transaction(connection: Any, record: ConnectionPoolEntry) -> None:
    """End the session of a connection that comes back with a transaction, as user code may have begun one by hand: with its
    locks it would stay open for as long as this process uses the connection."""
    if connection and connection.get_transaction_status():
        record.invalidate()


def note_error(context: ExceptionContext) -> None:
    """Mark an error as one of Dagster's database. Sessions of a server that is read-only are replaced, all of them."""
    if getattr(context.original_exception, "pgcode", None) == READ_ONLY:
        context.is_disconnect = True
    if context.sqlalchemy_exception:
        note(context.sqlalchemy_exception, is_sent=context.connection is not None)


#: What each transaction in which this process writes begins with. Raises when it may not write any more.
_guard: Callable[[Connection], None] | None = None


def guard_writes(guard: Callable[[Connection], None] | None) -> None:
    """Let all that Dagster's storages write in this process be stored together with a guard's consent, or not at all."""
    global _guard  # noqa: PLW0603
    _guard = guard


def guarded(connection: Connection) -> None:
    """To be called at the beginning of a transaction in which this process writes."""
    if _guard:
        _guard(connection)


_engines: list[Engine] = []
#: Pools of this process's ancestors: one that were collected here would end its connections.
_inherited: list[Pool] = []


def _leave_connections_to_parent() -> None:
    """In a forked child: engines of the parent open connections of the child's own, when needed."""
    pooled_engine.cache_clear()
    for engine in _engines:
        _inherited.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_connections_to_parent)


def limit_writes(patience: float) -> None:
    """Let writes of this process wait so many seconds at most while the server takes none."""
    global write_patience  # noqa: PLW0603
    write_patience = patience


@contextmanager
def impatience() -> Iterator[None]:
    """While the context lasts no call of this process waits: the caller tries again by itself."""
    global default_patience, write_patience
    before, default_patience, write_patience = (default_patience, write_patience), 0, 0
    try:
        yield
    finally:
        default_patience, write_patience = before


class PatientConnection(Connection):
    """A connection on which what fails while the server is away is tried again, on another one of the pool.

    Not within a transaction, which would have to begin again; and a write only if it was certainly not done.
    """

    def execute(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        if self.in_transaction():
            return super().execute(statement, parameters, execution_options=execution_options)
        is_read = getattr(statement, "is_select", False)
        how = super().execute if is_read or not _guard else self._execute_guarded
        act = partial(how, statement, parameters, execution_options=execution_options)

        def act_again() -> Any:
            # Forgets what broke: the next statement opens a connection.
            self.rollback()
            return act()

        try:
            result = act()
        except SQLAlchemyError as error:
            if kind_of(error) is Kind.WRONG or not (is_read or is_undone(error)):
                raise
            result = patiently(act_again, None if is_read else write_patience, only_undone=not is_read)
        # It has the rows. Statements commit by themselves; for SQLAlchemy a transaction has begun with this one.
        self.commit()
        return result

    def _execute_guarded(self, statement: Any, parameters: Any, *, execution_options: Any) -> Any:
        """A statement that is stored with the guard's consent, or not at all."""
        self.execution_options(isolation_level="READ COMMITTED")
        with self.begin():
            try:
                guarded(self)
                result = super().execute(statement, parameters, execution_options=execution_options)
            except SQLAlchemyError as error:
                # Nothing of it is committed.
                note(error, is_sent=False)
                raise
        self.execution_options(isolation_level="AUTOCOMMIT")
        return result


@contextmanager
def patient_connection(engine: Engine, patience: float | None = None) -> Iterator[Connection]:
    """A connection of the pool; waits while the server is away, then raises SQLAlchemy's error."""
    connection = patiently(lambda: PatientConnection(engine), patience)
    try:
        yield connection
    finally:
        connection.close()


def patiently(
    act: Callable[[], Result], patience: float | None = None, *, only_undone: bool = False
) -> Result:
    """What `act` returns; tried again while the database server is away, or other transactions are in its way.

    `only_undone`: not when it may have been done already.
    """
    if patience is None:
        patience = default_patience
    until = time.monotonic() + patience
    away, tries = False, 0
    while True:
        try:
            result = act()
        except SQLAlchemyError as error:
            kind = kind_of(error)
            if only_undone and not is_undone(error):
                raise
            if kind is Kind.AGAIN and tries < TRIES - 1:
                # At random, or both transactions would meet again.
                time.sleep(PAUSE_SECS * 2**tries * random.uniform(0.5, 1.5))
                tries += 1
                continue
            if kind is not Kind.AWAY or time.monotonic() > until:
                raise
            if not away:
                logger.warning(
                    "Postgres is away, trying for %.0f s: %s",
                    patience,
                    getattr(error, "orig", None) or error,
                    extra={"action": "database.away"},
                )
            away = True
            time.sleep(RETRY_SECS)
        else:
            if away:
                logger.warning("Postgres is back", extra={"action": "database.back"})
            return result
