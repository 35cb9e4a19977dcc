"""The storage on kept connections: what waits, what is written together, and what is not."""

import gc
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import pytest
import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, DagsterRun, DagsterRunStatus, EventLogEntry, RunsFilter
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster_postgres.event_log import PostgresEventLogStorage
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.pool import QueuePool

from dagster_stack import tags
from dagster_stack.store import connections, event_log
from dagster_stack.store.connections import RETRY_SECS, patient_connection, patiently, pooled_engine
from dagster_stack.store.event_batch import SIZE, EventBatch
from dagster_stack.store.event_log import AWAITED_EVENTS, AttemptState, PooledEventLogStorage
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.session import Session
from dagster_stack.store.superseded import INDEXED_EVENTS
from tests.unit.clock import Clock
from tests.unit.database_errors import AWAY, noted

#: Nobody listens on this port.
URL = "postgresql://user:secret@127.0.0.1:1/dagster"  #: Longer than any delay of a batch: what is written before was written for another reason.
NEVER = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(connections, "time", clock)
    return clock


# --- patience ---------------------------------------------------------------------------------------------------


def test_a_call_waits_while_the_server_is_away_and_then_returns_what_it_found(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a server that comes back within a minute
    start = clock.now

    def act() -> str:
        if clock.now < start + 60:
            raise AWAY
        return "found"

    # Then nobody notices but the log, which says it once
    assert patiently(act, patience=180) == "found"
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "Postgres is away",
        "Postgres is back",
    ]


def test_a_call_gives_up_when_the_server_stays_away(clock: Clock) -> None:
    start = clock.now
    calls = []

    def act() -> NoReturn:
        calls.append(clock.now)
        raise AWAY

    with pytest.raises(OperationalError):
        patiently(act, patience=10)

    assert 10 <= calls[-1] - start <= 11
    assert len(calls) <= 10 / RETRY_SECS + 2


def test_a_connection_that_broke_under_a_statement_is_the_servers_absence(clock: Clock) -> None:
    broken = noted(
        InterfaceError("SELECT 1", {}, Exception("connection already closed"), connection_invalidated=True)
    )
    answers: list[DBAPIError | None] = [broken, AWAY, None]

    def act() -> int:
        answer = answers.pop(0)
        if answer:
            raise answer
        return 1

    assert patiently(act) == 1


@pytest.mark.parametrize(
    "error",
    [
        noted(ProgrammingError("SELEC", {}, Exception("syntax error"))),
        noted(InterfaceError("SELECT 1", {}, Exception("cursor already closed"))),
        ValueError("no error of a database"),
    ],
)
def test_a_wrong_statement_raises_at_once(clock: Clock, error: Exception) -> None:
    start = clock.now

    def act() -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        patiently(act, patience=180)

    assert clock.now == start


def test_a_server_that_is_not_there_is_an_error_after_the_patience_of_the_caller() -> None:
    with pytest.raises(OperationalError, match="refused"), patient_connection(pooled_engine(URL, 2), 0):
        pass


# --- the pool -------------------------------------------------------------------------------------------------


def test_a_process_has_one_pool_of_so_many_connections_and_no_more() -> None:
    storage = PooledPostgresStorage(URL, connections=2)

    # Runs, events and schedules share it
    engine = pooled_engine(URL, 2)
    assert storage.run_storage._engine is engine
    assert storage.event_log_storage._engine is engine
    assert storage.schedule_storage._engine is engine
    assert PooledPostgresStorage(URL, connections=2).run_storage._engine is engine
    assert isinstance(engine.pool, QueuePool)
    assert (engine.pool.size(), engine.pool._max_overflow) == (2, 0)


def test_a_process_that_keeps_more_connections_has_them_and_those_that_it_starts_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run is started by the daemon: what the daemon allows itself must not be the run's as well."""
    monkeypatch.setattr(PooledPostgresStorage, "_process_connections", 0)
    look = (
        "from dagster_stack.store.instance_storage import PooledPostgresStorage as Storage;"
        f"print(Storage({URL!r}, connections=2).run_storage._engine.pool.size())"
    )

    PooledPostgresStorage.allow_process(10)

    storage = PooledPostgresStorage(URL, connections=2)
    assert storage.run_storage._engine.pool.size() == 10  # type: ignore[attr-defined]
    started = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "2"


def test_a_forked_process_does_not_share_its_parents_connections() -> None:
    """Two processes that talk on one socket break each other's statements."""
    engine = pooled_engine(URL, 2)

    with warnings.catch_warnings():
        # Python 3.12 and later warn when the parent has threads; this child only looks and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if pooled_engine(URL, 2) is not engine else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert pooled_engine(URL, 2) is engine


def test_the_configuration_is_dagsters_and_a_number_of_connections() -> None:
    configured = PooledPostgresStorage.from_config_value(
        None,
        {
            "postgres_db": {
                "username": "user", "password": "p@ss", "hostname": "here", "port": 5433, "db_name": "dagster",
                "params": {}, "scheme": "postgresql",
            },
            "should_autocreate_tables": True,
            "connections": 7,
        },
    )  # fmt: skip

    engine = configured.run_storage._engine
    assert (engine.url.host, engine.url.port, engine.url.password) == ("here", 5433, "p@ss")
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.size() == 7
    assert "connections" in PooledPostgresStorage.config_type()


# --- events -------------------------------------------------------------------------------------------------------


class EventLog(PooledEventLogStorage):
    """The storage, with a look at what it does.

    `log` tells what was done in which order: the steps of the events of each write, and `stored` for an event
    that went through Dagster's own code, which writes the tables of assets too, a connection each.
    """

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(URL, engine, Session())
        self.log: list[Any] = []
        monkeypatch.setattr(PostgresEventLogStorage, "store_event", lambda _, event: self._dagsters([event]))
        monkeypatch.setattr(
            PostgresEventLogStorage, "store_event_batch", lambda _, each: self._dagsters(each)
        )
        monkeypatch.setattr(event_log, "EventBatch", lambda write: EventBatch(write, NEVER))

    def _dagsters(self, events: Sequence[EventLogEntry]) -> None:
        self.log.append(("stored", [event.step_key for event in events]))

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        super()._write(events)
        self.log.append([event.step_key for event in events])

    def rows(self) -> list[tuple[str, str | None]]:
        columns = SqlEventLogStorageTable.c
        query = sqlalchemy.select(columns.step_key, columns.dagster_event_type).order_by(columns.id)
        with self._engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]


@pytest.fixture
def events(database_url: str, monkeypatch: pytest.MonkeyPatch) -> EventLog:
    engine = pooled_engine(database_url, 2)
    with engine.connect() as connection:
        connection.execute(SqlEventLogStorageTable.delete())
    return EventLog(engine, monkeypatch)


def event(step: str, kind: DagsterEventType | None = DagsterEventType.ENGINE_EVENT) -> EventLogEntry:
    # What a kind of event must carry is Dagster's matter: here only its kind counts.
    started = DagsterEvent(DagsterEventType.STEP_START.value, job_name="a_job", step_key=step)
    return EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id="run",
        timestamp=1.0,
        step_key=step,
        dagster_event=started._replace(event_type_value=kind.value) if kind else None,
    )


def test_without_batching_an_event_is_stored_when_the_call_returns(events: EventLog) -> None:
    events.store_event(event("a"))
    events.store_event(event("b", None))

    assert events.rows() == [("a", "ENGINE_EVENT"), ("b", None)]
    assert events.log == [["a"], ["b"]]


def test_inside_batching_events_are_written_together(events: EventLog) -> None:
    with events.batching():
        for step in "abc":
            events.store_event(event(step))
        assert events.rows() == []

    assert events.log == [["a", "b", "c"]]
    assert [step for step, _ in events.rows()] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", sorted(AWAITED_EVENTS, key=str))
def test_what_somebody_waits_for_is_stored_with_all_before_it(
    events: EventLog, kind: DagsterEventType
) -> None:
    """A step's success means that everything which it reported before is stored."""
    with events.batching():
        events.store_event(event("a"))
        events.store_event(event("b", kind))

        assert events.rows() == [("a", "ENGINE_EVENT"), ("b", kind.value)]
        assert events.log == [["a", "b"]]


def test_the_end_of_an_attempt_is_awaited_however_it_ends() -> None:
    """Written out on purpose: an event that is missing here makes every step wait for the delay of a batch."""
    assert {kind.value for kind in AWAITED_EVENTS} >= {"STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"}


@pytest.mark.parametrize("kind", sorted(INDEXED_EVENTS, key=str))
def test_events_of_assets_go_through_dagsters_own_code_after_what_came_before(
    events: EventLog, kind: DagsterEventType
) -> None:
    # Given an event that waits
    with events.batching():
        events.store_event(event("a"))

        # When an event follows for which Dagster keeps tables of its own
        events.store_event(event("b", kind))
        events.store_event(event("c"))

    # Then Dagster's code gets it, and the order of the log is the order of the calls
    assert events.log == [["a"], ("stored", ["b"]), ["c"]]


def test_a_batch_of_dagsters_own_comes_after_what_was_reported_before(events: EventLog) -> None:
    """With DAGSTER_EVENT_BATCH_SIZE Dagster hands materializations over together, by another method."""
    with events.batching():
        events.store_event(event("a"))
        events.store_event_batch([event("b", DagsterEventType.ASSET_MATERIALIZATION)])
        events.store_event(event("c"))

    assert events.log == [["a"], ("stored", ["b"]), ["c"]]


def test_a_write_is_one_statement(events: EventLog) -> None:
    """Hence one commit of Postgres, which stores all events of it or none."""
    statements: list[bool] = []

    def executed(*arguments: Any) -> None:
        statements.append(arguments[-1])

    sqlalchemy.event.listen(events._engine, "before_cursor_execute", executed)

    with events.batching():
        for step in "abc":
            events.store_event(event(step))

    # SQLAlchemy hands over all rows at once, and its dialect for Postgres makes one INSERT of so many of them
    assert statements == [True]
    dialect = cast(Any, psycopg2).dialect()
    assert dialect.use_insertmanyvalues_wo_returning
    assert dialect.insertmanyvalues_page_size >= SIZE


def test_a_write_waits_for_a_server_that_is_away(
    events: EventLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that breaks the connection in the middle of the first two statements
    connect, broken = events._connect, [AWAY, AWAY]

    @contextmanager
    def connect_or_break() -> Iterator[Any]:
        with connect() as connection:
            if broken:
                raise broken.pop()
            yield connection

    monkeypatch.setattr(events, "_connect", connect_or_break)

    events.store_event(event("a"))

    assert events.rows() == [("a", "ENGINE_EVENT")]


# --- how a step stands --------------------------------------------------------------------------------------------


def test_a_steps_standing_is_read_from_one_answer(events: EventLog, database_url: str) -> None:
    # Given a run with the ends of two steps and other events, beside another run with the same steps
    runs = PooledPostgresStorage(database_url).run_storage
    run = DagsterRun("a_job", status=DagsterRunStatus.STARTED, tags={tags.CODE: "1234", "other": "tag"})
    other = DagsterRun("a_job", status=DagsterRunStatus.CANCELING)
    runs.add_run(run)
    runs.add_run(other)
    kinds = DagsterEventType
    for run_id, step, kind in (
        (run.run_id, "step", kinds.STEP_START),
        (run.run_id, "step", kinds.STEP_UP_FOR_RETRY),
        (run.run_id, "step", kinds.STEP_UP_FOR_RETRY),
        (run.run_id, "step", kinds.STEP_SUCCESS),
        (run.run_id, "beside", kinds.STEP_FAILURE),
        (other.run_id, "step", kinds.STEP_FAILURE),
    ):
        events.store_event(event(step, kind)._replace(run_id=run_id))

    def standing(run_id: str, step: str) -> tuple[str, str | None, dict[str, int]]:
        found, code, counts = events.attempt_state(run_id, step)
        assert found
        assert found == runs.get_runs(RunsFilter([run_id]))[0]
        return found.status.value, code, {kind.value: count for kind, count in counts.items()}

    # Then each step's ends are counted, whatever is beside them
    assert standing(run.run_id, "step") == (
        "STARTED",
        "1234",
        {"STEP_SUCCESS": 1, "STEP_UP_FOR_RETRY": 2},
    )
    assert standing(run.run_id, "beside") == ("STARTED", "1234", {"STEP_FAILURE": 1})
    assert standing(run.run_id, "never started") == ("STARTED", "1234", {})
    # And a run that nobody gave its code, or that nobody knows, has none
    assert standing(other.run_id, "step") == ("CANCELING", None, {"STEP_FAILURE": 1})
    assert events.attempt_state("nobody's", "step") == AttemptState(None, None, Counter())


def test_a_transaction_that_user_code_leaves_open_ends_with_its_step(database_url: str) -> None:
    """Its locks would stop the whole stack, the step's own end first."""
    engine = pooled_engine(database_url, 2)
    with engine.connect() as connection:
        for statement in ("CREATE TABLE locked ()", "BEGIN", "LOCK TABLE locked"):
            connection.execute(sqlalchemy.text(statement))

    with engine.connect() as connection:
        held = "SELECT FROM pg_locks WHERE relation = 'locked'::regclass"
        assert connection.execute(sqlalchemy.text(held)).all() == []
        connection.execute(sqlalchemy.text("DROP TABLE locked"))


def test_what_is_asked_for_a_table_gives_its_connection_back(database_url: str) -> None:
    engine = pooled_engine(database_url, 1)
    events = PooledEventLogStorage(database_url, engine, Session())
    gc.disable()
    try:
        assert events.has_table("concurrency_limits")
        assert not events.has_table("of_nobody")
    finally:
        gc.enable()
    assert cast(QueuePool, engine.pool).checkedout() == 0
