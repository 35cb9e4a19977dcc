"""Dagster's Postgres storage on a small pool of connections, which run, event and schedule storage of a process share."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ClassVar, cast

import sqlalchemy
from dagster import DagsterEvent, DagsterRun, DagsterRunStatus, Field, IntSource
from dagster._core.events import (
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
)
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.config import pg_config
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy.engine import Connection

from dagster_stack.logs.context import bound
from dagster_stack.patches.dagster import SERIALIZE_RUN
from dagster_stack.store import audit, doomed, error_chains, facts, leases, upkeep
from dagster_stack.store.connections import (
    DEFAULT_CONNECTIONS,
    patient_connection,
    pooled_engine,
)
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.session import PooledStorage, Session
from dagster_stack.tags import CODE, DEFINITIONS, WITHIN
from dagster_stack.texts import shown

logger = logging.getLogger(__name__)

CANCELING = DagsterRunStatus.CANCELING
#: Tags that the stack gives to a run when it is launched, or begins.
OF_ONE_RUN = {CODE, DEFINITIONS, WITHIN}
#: One row an attempt. Dagster's own indexes would be searched through all events of the run.
STEP_ENDS_INDEX = """
    CREATE INDEX IF NOT EXISTS dagster_stack_step_ends ON event_logs (run_id, step_key)
    WHERE dagster_event_type IN ('STEP_SUCCESS', 'STEP_FAILURE', 'STEP_SKIPPED', 'STEP_UP_FOR_RETRY')
"""


def make_tables(url: str) -> None:
    """Dagster's tables and the index of this stack; what is there stays as it is."""
    DagsterPostgresStorage(url, should_autocreate_tables=True)
    with patient_connection(pooled_engine(url, DEFAULT_CONNECTIONS)) as connection:
        own = map(sqlalchemy.text, (STEP_ENDS_INDEX, facts.TABLE, audit.TABLE, audit.INDEX))
        of_retention = (doomed.TABLE, doomed.RUN_ENDS, doomed.CHECKS_OF_RUNS, doomed.LATEST_CHECKS)
        for statement in (leases.TABLE, leases.COLUMN, *own, *of_retention, *upkeep.settings()):
            connection.execute(statement)


def in_order(value: Any) -> str:
    """Replaces Dagster's serialization of runs, which sorts keys: here a config keeps the order of its launch."""
    return serialize_value(value, sort_keys=False)


SERIALIZE_RUN.replace(in_order)


class PooledRunStorage(PooledStorage, PostgresRunStorage):
    """Dagster's run storage on the process's pool."""

    def connect(self) -> AbstractContextManager[Connection]:
        return self._connection()

    def handle_run_event(
        self, run_id: str, event: DagsterEvent, update_timestamp: datetime | None = None
    ) -> None:
        """Dagster's own, one report of a run at a time. A run that ended stays ended, and one that is being
        canceled does not start, whatever a late process reports of it; raises Fenced for one that lost the run."""
        status = EVENT_TYPE_TO_PIPELINE_RUN_STATUS.get(event.event_type)
        if status is None:
            return

        def report(_: bool) -> None:
            run = self._get_run_by_id(run_id)
            if (
                run is None
                or run.is_finished
                or (run.status == CANCELING and status not in FINISHED_STATUSES)
            ):
                with bound(run=run_id):
                    logger.warning(
                        "%s of run %s is ignored: it is %s",
                        status.value,
                        run_id,
                        run and run.status.value,
                        extra={"action": "event.ignored"},
                    )
                return
            super(PooledRunStorage, self).handle_run_event(run_id, event, update_timestamp)

        self._store_whole(run_id, report, alone=True)

    def add_run(self, dagster_run: DagsterRun) -> DagsterRun:
        """Dagster's own, with tags that Postgres takes, and as a whole: a run that is refused is not there at all.

        What the stack has said of a run by tags is not true of a new one that user code gave them to. Who asks for it in
        Dagit is said by no one else. Raises RunDoomed.
        """
        add, tags = super().add_run, shown_tags(audit.with_user(dagster_run.tags))
        if dagster_run.status == DagsterRunStatus.NOT_STARTED:
            tags = {name: value for name, value in tags.items() if name not in OF_ONE_RUN}
        run = dagster_run if tags == dagster_run.tags else dagster_run.with_tags(tags)

        before = {tags[name] for name in (PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG) if name in tags}

        def store(again: bool) -> DagsterRun:
            if before:
                with self.connect() as connection:
                    doomed.refuse_successors(connection, before)
            return run if again and self.has_run(run.run_id) else add(run)

        return self._store_whole(run.run_id, store, alone=True)

    def add_backfill(self, partition_backfill: PartitionBackfill) -> None:
        """Dagster's own, in one transaction: else a run whose tags are refused would still be executed."""
        add, tags = super().add_backfill, audit.with_user(partition_backfill.tags)
        backfill = partition_backfill._replace(tags=tags)
        self._store_whole(backfill.backfill_id, lambda _: add(backfill))

    def add_run_tags(self, run_id: str, new_tags: Mapping[str, str]) -> None:
        """Dagster's own, in one transaction: else half of it would count as done when it is tried again."""
        add, tags = super().add_run_tags, shown_tags(new_tags)
        self._store_whole(run_id, lambda _: add(run_id, tags), alone=True)

    # `init` migrates the tables before services start: Dagster would ask for their columns at every read.
    def has_run_stats_index_cols(self) -> bool:
        return True

    def has_backfill_id_column(self) -> bool:
        return True


def shown_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """A run's tags, whatever characters user code put in."""
    return {shown(name): shown(value) for name, value in tags.items()}


class PooledScheduleStorage(PooledStorage, PostgresScheduleStorage):
    """Dagster's schedule storage on the process's pool."""

    def connect(self, run_id: str | None = None) -> AbstractContextManager[Connection]:
        return self._connection()


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
        error_chains.use_in_dagster()
        engine = pooled_engine(url, max(connections, self._process_connections))
        session = Session()
        self._runs = PooledRunStorage(url, engine, session)
        self._events = PooledEventLogStorage(url, engine, session)
        self._schedules = PooledScheduleStorage(url, engine, session)
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
