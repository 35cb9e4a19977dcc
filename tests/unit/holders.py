"""Processes that hold a lease, as the database sees them: each with a storage of its own, and time that has passed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, DagsterRun, DagsterRunStatus, EventLogEntry
from dagster._core.definitions.events import AssetKey, AssetMaterialization
from dagster._core.events import StepMaterializationData
from dagster._core.storage.event_log import SqlEventLogStorageTable

from dagster_stack.store.connections import DEFAULT_CONNECTIONS, pooled_engine
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.leases import Lease, Leases, Work


class Database:
    """The database that the processes of a test share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = pooled_engine(url, DEFAULT_CONNECTIONS)
        self.leases = Leases(self.engine)

    def process(self) -> PooledPostgresStorage:
        """The storage of one more process."""
        return PooledPostgresStorage(self.url)

    def run(self, status: DagsterRunStatus = DagsterRunStatus.STARTED, **more: Any) -> DagsterRun:
        run = DagsterRun("a_job", run_id=str(uuid4()), status=status, **more)
        return self.process().run_storage.add_run(run)

    def taken(self, work: Work, holder: str) -> Lease:
        """The lease of a process that asks for a work, and gets it."""
        lease = self.leases.acquire(work, holder)
        assert lease, f"{work} is held by somebody else"
        return lease

    def silence(self, work: Work, seconds: float) -> None:
        """Nobody has given a sign of life for a work since so many seconds."""
        self.execute(
            "UPDATE dagster_stack_claims SET beat_at = now() - make_interval(secs => :seconds)"
            " WHERE run_id = :run AND step_key = :step AND attempt = :attempt",
            **work.key,
            seconds=seconds,
        )

    def execute(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def events(self, run_id: str) -> list[tuple[str | None, str | None]]:
        """Step and kind of the events of a run that are stored, in their order."""
        columns = SqlEventLogStorageTable.c
        query = sqlalchemy.select(columns.step_key, columns.dagster_event_type)
        with self.engine.connect() as connection:
            found = connection.execute(query.where(columns.run_id == run_id).order_by(columns.id))
            return [(row[0], row[1]) for row in found]


@contextmanager
def pool_of_one(storage: PooledEventLogStorage, name: str) -> Iterator[PooledEventLogStorage]:
    """A pool with one slot; at the end nobody has it any more, and there is none."""
    storage.set_concurrency_slots(name, 1)
    yield storage
    for slot in storage.get_concurrency_info(name).claimed_slots:
        storage.free_concurrency_slots_for_run(slot.run_id)
    storage.delete_concurrency_limit(name)


def any_work(step_key: str = "step") -> Work:
    """An attempt of a step of a run that nobody else has."""
    return Work(str(uuid4()), step_key, 1)


def entry(
    run_id: str, kind: DagsterEventType, step_key: str = "step", data: Any = None, text: str = ""
) -> EventLogEntry:
    """An event of a step, as a process reports it."""
    started = DagsterEvent(
        DagsterEventType.STEP_START.value, job_name="a_job", step_key=step_key, message=text
    )
    return EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id=run_id,
        timestamp=1.0,
        step_key=step_key,
        dagster_event=started._replace(event_type_value=kind.value, event_specific_data=data),
    )


def materialization(run_id: str, key: str, step_key: str = "step", **more: Any) -> EventLogEntry:
    """The event by which a step says that it has made an asset."""
    data = StepMaterializationData(AssetMaterialization(AssetKey(key), **more))
    return entry(run_id, DagsterEventType.ASSET_MATERIALIZATION, step_key, data)
