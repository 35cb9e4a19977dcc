"""Dagster's Postgres storage on a small pool of connections, with the events of a step written together.

Dagster's own opens a connection for every event (20 ms over a container network with SCRAM) and commits
each one by itself. Here a process keeps its connections, and `batching` collects what a step reports.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

import sqlalchemy
from dagster import Field, IntSource
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.config import pg_config
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config, set_pg_statement_timeout
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from dagster_stack.storage.event_batch import EventBatch

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

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

#: Events for which Dagster writes other tables too: they are stored one by one, by Dagster's own code.
INDEXED_EVENTS = {*ASSET_EVENTS, *ASSET_CHECK_EVENTS}
#: Events after which somebody waits: the executor for a step's end, a person for its start.
AWAITED_EVENTS = {
    DagsterEventType.STEP_START,
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_UP_FOR_RETRY,
}

#: Answered from the index that `init` makes (STEP_ENDS_INDEX), however many events a run has.
STANDING = sqlalchemy.text(
    """
    SELECT runs.status, ends.dagster_event_type, count(ends.id)
    FROM runs
    LEFT JOIN event_logs AS ends
      ON ends.run_id = runs.run_id AND ends.step_key = :step AND ends.dagster_event_type = ANY(:kinds)
    WHERE runs.run_id = :run
    GROUP BY runs.status, ends.dagster_event_type
    """
)
#: One row an attempt. Dagster's own indexes would be searched through all events of the run.
STEP_ENDS_INDEX = """
    CREATE INDEX IF NOT EXISTS dagster_stack_step_ends ON event_logs (run_id, step_key)
    WHERE dagster_event_type IN ('STEP_SUCCESS', 'STEP_FAILURE', 'STEP_SKIPPED', 'STEP_UP_FOR_RETRY')
"""


def make_tables(url: str) -> None:
    """Dagster's tables and the index of this stack; what is there stays as it is."""
    DagsterPostgresStorage(url, should_autocreate_tables=True)
    with patient_connection(pooled_engine(url, DEFAULT_CONNECTIONS)) as connection:
        connection.execute(sqlalchemy.text(STEP_ENDS_INDEX))


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


@contextmanager
def patient_connection(engine: Engine, patience: float = PATIENCE_SECS) -> Iterator[Connection]:
    """A connection of the pool; waits while the server is away, then raises SQLAlchemy's OperationalError."""
    connection = patiently(engine.connect, patience)
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
                logger.warning("Postgres is away, trying for %.0f s: %s", patience, error.orig)
            away = True
            time.sleep(RETRY_SECS)
        else:
            if away:
                logger.warning("Postgres is back")
            return result


def server_is_away(error: DBAPIError) -> bool:
    """Whether the server, or its connection, is gone or full, rather than the statement wrong."""
    return isinstance(error, OperationalError) or error.connection_invalidated


class PooledStorage:
    """What run, event and schedule storage have in common: the process's engine, also in Dagit.

    Dagster gives Dagit a pool that answers one request for each of its connections with an error after Postgres
    was restarted.
    """

    _engine: Engine

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        def limit(connection: Any, _: Any) -> None:
            set_pg_statement_timeout(connection, statement_timeout)

        sqlalchemy.event.listen(self._engine, "connect", limit)


class PooledRunStorage(PooledStorage, PostgresRunStorage):
    """Dagster's run storage on the process's pool."""

    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine

    def connect(self) -> AbstractContextManager[Connection]:
        return patient_connection(self._engine)

    # `init` migrates the tables before anybody starts: Dagster would ask for their columns at every read.
    def has_run_stats_index_cols(self) -> bool:
        return True

    def has_backfill_id_column(self) -> bool:
        return True


class PooledScheduleStorage(PooledStorage, PostgresScheduleStorage):
    """Dagster's schedule storage on the process's pool."""

    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine

    def connect(self, run_id: str | None = None) -> AbstractContextManager[Connection]:
        return patient_connection(self._engine)


class PooledEventLogStorage(PooledStorage, PostgresEventLogStorage):
    """Dagster's event log on the process's pool; inside `batching` events are written together."""

    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url, should_autocreate_tables=False)
        self._engine = engine
        self._batch: EventBatch | None = None

    def _connect(self) -> AbstractContextManager[Connection]:
        return patient_connection(self._engine)

    @contextmanager
    def batching(self) -> Iterator[EventBatch]:
        """Collect this process's events while the context lasts; whatever somebody awaits is written at once."""
        batch = EventBatch(self._write)
        self._batch = batch
        try:
            yield batch
        finally:
            self._batch = None
            batch.close()

    def store_event(self, event: EventLogEntry) -> None:
        kind = event.dagster_event_type if event.is_dagster_event else None
        batch = self._batch
        if kind in INDEXED_EVENTS:
            if batch:
                batch.flush()
            super().store_event(event)
        elif batch:
            batch.add(event)
            if kind in AWAITED_EVENTS:
                batch.flush()
        else:
            self._write([event])

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        if self._batch:
            self._batch.flush()
        super().store_event_batch(events)

    def flush(self) -> None:
        """Return when everything that was reported so far is stored."""
        if self._batch:
            self._batch.flush()

    def standing(self, run_id: str, step_key: str, kinds: Sequence[str]) -> tuple[str | None, dict[str, int]]:
        """A run's status (None: no such run), and how often its step has events of these kinds."""
        parameters = {"run": run_id, "step": step_key, "kinds": list(kinds)}
        with self._connect() as connection:
            rows = connection.execute(STANDING, parameters).all()
        return (rows[0][0] if rows else None), {kind: count for _, kind, count in rows if kind}

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        """One statement, hence one commit: all of them are stored or none."""
        rows = [self._event_to_row(event) for event in events]

        def insert() -> None:
            with self._connect() as connection:
                connection.execute(SqlEventLogStorageTable.insert(), rows)

        patiently(insert)


class PooledPostgresStorage(DagsterStorage, ConfigurableClass):
    """Dagster's unified Postgres storage; `connections` is what a process opens at most.

    Its tables are made by `init`.
    """

    #: What this very process keeps at most when that is more.
    _process_connections: ClassVar[int] = 0

    def __init__(
        self,
        url: str,
        connections: int = DEFAULT_CONNECTIONS,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        self._inst_data = inst_data
        engine = pooled_engine(url, max(connections, self._process_connections))
        self._runs = PooledRunStorage(url, engine)
        self._events = PooledEventLogStorage(url, engine)
        self._schedules = PooledScheduleStorage(url, engine)
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def allow_process(cls, connections: int) -> None:
        """Let this process, which does many things at once, keep more; those that it starts keep what is configured."""
        cls._process_connections = connections

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        return {
            **cast(Mapping[str, Any], pg_config()),
            "connections": Field(IntSource, default_value=DEFAULT_CONNECTIONS),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "PooledPostgresStorage":
        return cls(pg_url_from_config(config_value), config_value["connections"], inst_data)

    @property
    def event_log_storage(self) -> PooledEventLogStorage:
        return self._events

    @property
    def run_storage(self) -> PooledRunStorage:
        return self._runs

    @property
    def schedule_storage(self) -> PooledScheduleStorage:
        return self._schedules

    # Only a unified storage's own data is ever used; these belong to storages configured one by one.
    event_storage_data = run_storage_data = schedule_storage_data = None
