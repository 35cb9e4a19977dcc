"""A session that does nothing beside others of its kind, or a backup; and how it leaves room for everybody else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from dagster_stack.store.doomed import RETENTION_AND_BACKUP
from dagster_stack.store.sqlstate import code_of

TRY_LOCK = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
LOCK = sqlalchemy.text("SELECT pg_advisory_lock(hashtextextended(:name, 0))")
#: So that a person who waits can be interrupted: while the driver waits, Python sees no signal.
SHORTLY = sqlalchemy.text("SET lock_timeout = 1000")
AS_BEFORE = sqlalchemy.text("RESET lock_timeout")
#: The two halves of the lock's number are columns there.
AWAITED = sqlalchemy.text(
    """
    SELECT EXISTS (
        SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE datname = current_database() AND locktype = 'advisory' AND objsubid = 1 AND NOT granted
            AND (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) = hashtextextended(:name, 0)
    )
    """
)
UNLOCK = sqlalchemy.text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))")
#: What the server says when that time is over.
LOCK_NOT_AVAILABLE = "55P03"
#: Milliseconds: nobody holds rows of runs that ended long ago. One that waits longer is tried again an hour later.
LIMIT = sqlalchemy.text("SET LOCAL lock_timeout = 5000")

#: Of this session nothing must be on disk at once but what runs are doomed: what a crash of the server undoes is done again.
UNHURRIED = sqlalchemy.text("SET LOCAL synchronous_commit = off")
#: The share of the time that batches may take, and seconds of a pause at least and at most.
SHARE, SHORTEST_PAUSE_SECS, LONGEST_PAUSE_SECS = 0.1, 0.02, 5.0


@contextmanager
def alone(engine: Engine, *, wait: bool = False) -> Iterator[Connection | None]:
    """A connection that holds the lock of retention and backups; None while another one has it, unless `wait`.

    The lock is the session's: who loses the connection loses both, and can do nothing without it.
    """
    name = {"name": RETENTION_AND_BACKUP}
    with engine.connect() as kept:
        connection = kept.execution_options(isolation_level="AUTOCOMMIT")
        has_lock = connection.execute(TRY_LOCK, name).scalar_one()
        connection.commit()
        if not (has_lock or wait):
            yield None
            return
        try:
            if not has_lock:
                wait_for_lock(connection)
            yield connection
        finally:
            try:
                connection.rollback()
                connection.execute(UNLOCK, name)
                connection.commit()
            except SQLAlchemyError:
                # The end of the session frees it.
                connection.invalidate()


def wait_for_lock(connection: Connection) -> None:
    """Have the lock, after whoever has it now."""
    connection.execute(SHORTLY)
    while True:
        try:
            connection.execute(LOCK, {"name": RETENTION_AND_BACKUP})
        except OperationalError as error:
            connection.rollback()
            if code_of(error) != LOCK_NOT_AVAILABLE:
                raise
        else:
            connection.execute(AS_BEFORE)
            connection.commit()
            return


def is_awaited(connection: Connection) -> bool:
    """Whether somebody waits for the lock: a backup must not wait for the end of a long pass."""
    with transaction(connection):
        return bool(connection.execute(AWAITED, {"name": RETENTION_AND_BACKUP}).scalar_one())


@contextmanager
def transaction(connection: Connection, durable: bool = False) -> Iterator[Connection]:
    """What is done meanwhile is stored as a whole, or not at all; if `durable`, it is on disk at the end."""
    with connection.execution_options(isolation_level="READ COMMITTED").begin():
        connection.execute(LIMIT)
        if not durable:
            connection.execute(UNHURRIED)
        yield connection


@dataclass
class Pace:
    """Most of the time is everybody else's: after each batch there is a pause, nine times as long as the batch took."""

    rest: Callable[[float], Any] = time.sleep
    _began: float = field(default_factory=time.monotonic)

    def pause(self) -> None:
        took = time.monotonic() - self._began
        self.rest(min(max(took * (1 / SHARE - 1), SHORTEST_PAUSE_SECS), LONGEST_PAUSE_SECS))
        self._began = time.monotonic()
