"""Postgres is read-only for a while, as in a failover: everybody waits, nothing is lost, nothing is done twice."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import sqlalchemy
from celery import Celery
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy.exc import InternalError

from dagster_stack.step.step_execution import execute_step
from dagster_stack.store import connections as database_module
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.leases import Work
from dagster_stack.timing import PATIENCE_SECS, STALE_SECS
from tests.unit import eventful_jobs
from tests.unit.clock import Clock
from tests.unit.deliveries import Delivery, dead_letters, delayed
from tests.unit.failover import Server
from tests.unit.holders import Database, any_work, entry, materialization
from tests.unit.postgres_server import PostgresServer
from tests.unit.runs_by_hand import kinds, message, started_run

KINDS = DagsterEventType


@pytest.fixture
def server(postgres: PostgresServer, database: Database) -> Iterator[Server]:
    server = Server(postgres, database)
    yield server
    server.set(False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(database_module, "time", clock)
    return clock


def event(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    storage.event_log_storage.store_event(entry(run.run_id, KINDS.STEP_START))


def event_of_an_asset(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    storage.event_log_storage.store_event(materialization(run.run_id, "orders"))


def partition(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    storage.event_log_storage.add_dynamic_partitions(f"days of {run.run_id}", ["monday"])


def run_tags(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    storage.run_storage.add_run_tags(run.run_id, {"rows": "5"})


def report(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    success = DagsterEvent(KINDS.RUN_SUCCESS.value, job_name="a_job")
    storage.run_storage.handle_run_event(run.run_id, success)


def new_run(storage: PooledPostgresStorage, _: DagsterRun) -> None:
    storage.run_storage.add_run(DagsterRun("a_job", run_id=str(uuid4()), tags={"a": "b"}))


def cursor(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    storage.run_storage.set_cursor_values({run.run_id: "1"})


def heartbeat(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    storage.run_storage.add_daemon_heartbeat(DaemonHeartbeat(1.0, "SENSOR", run.run_id, []))


def tick(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    data = TickData(run.run_id, "daily", InstigatorType.SCHEDULE, TickStatus.STARTED, 1.0)
    storage.schedule_storage.create_tick(data)


def lease(storage: PooledPostgresStorage, run: DagsterRun) -> None:
    assert storage.event_log_storage.leases.acquire(Work(run.run_id, "another", 1), "b")


#: What of that is in the event log afterwards.
EVENTS = {"event": ["STEP_START"], "event_of_an_asset": ["ASSET_MATERIALIZATION"]}
WRITES = [event, event_of_an_asset, partition, run_tags, report, new_run, cursor, heartbeat, tick, lease]


@pytest.mark.parametrize("leased", [True, False], ids=["of a step", "of a service"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_whatever_is_written_waits_and_is_done_once(
    database: Database,
    server: Server,
    clock: Clock,
    write: Callable[[PooledPostgresStorage, DagsterRun], None],
    leased: bool,
) -> None:
    run, storage = database.run(), database.process()
    log = storage.event_log_storage
    start = clock.now
    if leased:
        with log.holding(database.taken(Work(run.run_id, "step", 1), "a")):
            with server.read_only(clock, 30):
                write(storage, run)
            log.store_event(entry(run.run_id, KINDS.STEP_SUCCESS))
    else:
        with server.read_only(clock, 30):
            write(storage, run)

    assert 30 <= clock.now - start < 40
    stored = [kind for _, kind in database.events(run.run_id) if kind != "STEP_SUCCESS"]
    assert stored == EVENTS.get(write.__name__, [])


def test_after_its_patience_a_caller_learns_what_postgres_says(
    database: Database, server: Server, clock: Clock
) -> None:
    run, storage = database.run(), database.process()
    with server.read_only(clock, 2 * PATIENCE_SECS), pytest.raises(InternalError, match="read-only"):
        new_run(storage, run)


def test_a_launch_in_dagit_is_answered_before_its_user_gives_up(
    database: Database, server: Server, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "write_patience", PATIENCE_SECS)
    database_module.limit_writes(20)
    run, storage, start = database.run(), database.process(), clock.now

    with server.read_only(clock, 100):
        for write in (new_run, report, cursor):
            with pytest.raises(InternalError, match="read-only"):
                write(storage, run)

    assert clock.now - start < 3 * 25


def test_sessions_of_a_server_that_became_read_only_are_replaced_all_of_them(
    database: Database, clock: Clock
) -> None:
    """The name of the host may lead to another server by now; a session stays where it is for as long as it lives."""
    run, storage = database.run(), database.process()

    def sessions() -> set[int]:
        found = set()
        with database.engine.connect() as one, database.engine.connect() as other:
            for connection in (one, other):
                connection.execute(sqlalchemy.text("SET default_transaction_read_only = on"))
                found.add(connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one())
        return found

    before, start = sessions(), clock.now

    run_tags(storage, run)

    assert clock.now - start <= 1
    with database.engine.connect() as one, database.engine.connect() as other:
        after = {c.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one() for c in (one, other)}
    assert not before & after


def test_who_can_not_give_a_sign_of_life_counts_as_alive_meanwhile(
    database: Database, server: Server, clock: Clock
) -> None:
    work = any_work()
    database.taken(work, "a")
    gone = any_work()
    database.leases.release(database.taken(gone, "b"))
    database.silence(work, STALE_SECS + 60)
    assert database.leases.active([work.run_id, gone.run_id]) == set()
    server.set(True)

    assert database.leases.active([work.run_id, gone.run_id]) == {work}


# --- a step ---------------------------------------------------------------------------------------------------------------


def test_a_step_whose_code_uses_the_instance_meanwhile_goes_on_when_it_is_over(
    instance: DagsterInstance, app: Celery, server: Server, clock: Clock
) -> None:
    run = started_run(instance, eventful_jobs.with_an_event)
    step = message(instance, run, "eventful")

    def writes(context: object) -> None:
        with server.read_only(clock, 100):
            instance.add_run_tags(run.run_id, {"rows": "5"})

    eventful_jobs.happenings["eventful"] = [writes]

    execute_step(Delivery(app), step.to_json())

    assert "STEP_SUCCESS" in kinds(instance, run.run_id, "eventful")
    assert kinds(instance, run.run_id, "eventful").count("STEP_START") == 1
    assert delayed() == dead_letters() == []
    found = instance.get_run_by_id(run.run_id)
    assert found
    assert found.status == DagsterRunStatus.STARTED
    assert found.tags["rows"] == "5"
