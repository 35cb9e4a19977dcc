"""One connection to Postgres breaks under a statement, or with the answer to a commit: nobody gives up what it does."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from dagster import AssetKey, DagsterEvent, DagsterEventType, DagsterRunStatus, RunsFilter
from dagster._core.execution.plan.outputs import StepOutputData, StepOutputHandle
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from dagster_stack.errors import Fenced, GivenUp
from dagster_stack.store import connections as database_module
from dagster_stack.store import leases as leases_module
from dagster_stack.store import within
from dagster_stack.store.connections import noting_engine, pooled_engine
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.leases import Work
from dagster_stack.store.sqlstate import is_away
from dagster_stack.timing import STALE_SECS
from tests.unit.clock import Clock
from tests.unit.holders import Database, any_work, entry, materialization

KINDS = DagsterEventType


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(database_module, "time", clock)
    return clock


class Breaks:
    """Ends a connection's process in Postgres, as a crash of it does."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self._killer = sqlalchemy.create_engine(
            database.url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        #: Texts of statements before which their connections break, the last one next.
        self.before: list[str] = []
        #: Commits of transactions that are done, and whose answers are lost.
        self.answers = 0
        #: What happens meanwhile.
        self.meanwhile: Callable[[], object] = lambda: None
        self.count = 0
        dialect: Any = database.engine.dialect
        commit = dialect.do_commit

        def do_commit(connection: Any) -> None:
            commit(connection)
            if self.answers and not connection.driver_connection.autocommit:
                self.answers -= 1
                self._kill(connection.driver_connection)
                raise dialect.dbapi.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(dialect, "do_commit", do_commit)

    def on_statement(self, connection: Any, _: Any, statement: str, *more: Any) -> None:
        if self.before and self.before[-1] in statement:
            self.before.pop()
            self._kill(connection.connection.driver_connection)

    def _kill(self, connection: Any) -> None:
        with self._killer.connect() as killer:
            kill = sqlalchemy.text("SELECT pg_terminate_backend(:pid, 5000)")
            assert killer.execute(kill, {"pid": connection.get_backend_pid()}).scalar_one()
        self.count += 1
        self.meanwhile()


@pytest.fixture
def breaks(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaks]:
    breaks = Breaks(database, monkeypatch)
    sqlalchemy.event.listen(database.engine, "before_cursor_execute", breaks.on_statement)
    yield breaks
    sqlalchemy.event.remove(database.engine, "before_cursor_execute", breaks.on_statement)
    assert not breaks.before


# --- reads ---------------------------------------------------------------------------------------------------------


def status(storage: PooledPostgresStorage, run_id: str) -> Any:
    (run,) = storage.run_storage.get_runs(RunsFilter(run_ids=[run_id]))
    return run.status


def logs(storage: PooledPostgresStorage, run_id: str) -> Any:
    return [each.run_id for each in storage.event_log_storage.get_logs_for_run(run_id)]


def news(storage: PooledPostgresStorage, run_id: str) -> Any:
    return len(storage.event_log_storage.news(run_id, -1, [], [KINDS.STEP_START], 10).events)


def standing(storage: PooledPostgresStorage, run_id: str) -> Any:
    return storage.event_log_storage.attempt_state(run_id, "step")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("read", [status, logs, news, standing], ids=lambda read: read.__name__)
def test_a_read_whose_connection_breaks_is_read_again_and_its_step_goes_on(
    database: Database, breaks: Breaks, read: Callable[[PooledPostgresStorage, str], Any], times: int
) -> None:
    run, storage = database.run(), database.process()
    work = Work(run.run_id, "step", 1)
    with storage.event_log_storage.holding(database.taken(work, "a")):
        storage.event_log_storage.store_event(entry(run.run_id, KINDS.STEP_START))
        expected = read(storage, run.run_id)
        breaks.before = ["SELECT"] * times

        found = read(storage, run.run_id)

        assert found == expected
        assert breaks.count == times
        storage.event_log_storage.store_event(entry(run.run_id, KINDS.STEP_SUCCESS))
    assert [kind for _, kind in database.events(run.run_id)] == ["STEP_START", "STEP_SUCCESS"]


def test_of_reads_on_one_connection_a_later_one_is_read_again_too(database: Database, breaks: Breaks) -> None:
    connection = database.process().event_log_storage._connect()
    with connection as kept:
        number = sqlalchemy.select(sqlalchemy.literal(1))
        assert kept.execute(number).scalar_one() == 1
        breaks.before = ["SELECT"]
        assert kept.execute(number).scalar_one() == 1


def test_a_write_of_dagsters_own_that_breaks_is_not_tried_again_and_nothing_is_reported_after_it(
    database: Database, breaks: Breaks
) -> None:
    """Nobody knows whether it was done: whoever gets the work next begins where the log stands."""
    run, storage = database.run(), database.process()
    with storage.event_log_storage.holding(database.taken(Work(run.run_id, "step", 1), "a")):
        breaks.before = ["INSERT INTO dynamic_partitions"]
        with pytest.raises(DBAPIError):
            storage.event_log_storage.add_dynamic_partitions("days", ["monday"])
        with pytest.raises(GivenUp):
            storage.event_log_storage.store_event(entry(run.run_id, KINDS.STEP_SUCCESS))


@pytest.mark.parametrize("statement", ["pg_advisory_xact_lock", "UPDATE runs", "INSERT INTO run_tags"])
def test_tags_of_a_run_that_break_are_set_all_the_same(
    database: Database, breaks: Breaks, statement: str
) -> None:
    run, storage = database.run(), database.process()
    with storage.event_log_storage.holding(database.taken(Work(run.run_id, "step", 1), "a")):
        breaks.before = [statement]
        storage.run_storage.add_run_tags(run.run_id, {"colour": "red"})
        storage.event_log_storage.store_event(entry(run.run_id, KINDS.STEP_SUCCESS))
    assert breaks.count == 1
    query = "SELECT value FROM run_tags WHERE run_id = :run AND key = 'colour'"
    assert database.execute(query, run=run.run_id) == [("red",)]


def test_a_connection_ends_when_the_other_side_is_gone_without_a_word(database: Database) -> None:
    """A host that was cut off had no step for minutes after it was back: its processes still waited for answers."""
    with pooled_engine(database.url, 2).connect() as connection:
        assert connection.connection.dbapi_connection
        found = connection.connection.dbapi_connection.info.dsn_parameters
    assert (found["tcp_user_timeout"], found["keepalives_idle"]) == ("20000", "10")
    assert (found["keepalives_interval"], found["keepalives_count"]) == ("5", "2")


def test_a_statement_that_takes_too_long_is_not_the_servers_absence(database: Database) -> None:
    """Dagit limits its statements: a page that is too slow must not be read again for minutes."""
    engine = noting_engine(
        database.url, connect_args={"options": "-c statement_timeout=50"}, poolclass=NullPool
    )
    with engine.connect() as connection, pytest.raises(OperationalError) as found:
        connection.execute(sqlalchemy.text("SELECT pg_sleep(5)"))
    assert not is_away(found.value)


# --- events of assets ----------------------------------------------------------------------------------------------------


def made(storage: PooledPostgresStorage, key: str) -> list[Any]:
    records = storage.event_log_storage.fetch_materializations(AssetKey(key), limit=10).records
    return [each.asset_materialization.metadata["by"].value for each in records if each.asset_materialization]


#: How one try to store an event of an asset ends without an answer.
WAYS: list[Callable[[Breaks], object]] = [
    lambda breaks: breaks.before.append("FOR KEY SHARE"),
    lambda breaks: breaks.before.append("NOTIFY"),
    lambda breaks: breaks.before.append("INSERT INTO asset_keys"),
    lambda breaks: breaks.before.extend(["INSERT INTO asset_keys", "NOTIFY"]),
    lambda breaks: setattr(breaks, "answers", 1),
]
NAMES = ["at its beginning", "in its middle", "at its end", "twice", "answer lost"]


@pytest.mark.parametrize("happens", WAYS, ids=NAMES)
def test_an_asset_whose_event_breaks_is_made_once_and_its_step_goes_on(
    database: Database, breaks: Breaks, happens: Callable[[Breaks], object]
) -> None:
    work, storage = any_work(), database.process()
    key = f"asset of {work.run_id}"
    log = storage.event_log_storage
    with log.holding(database.taken(work, "a")):
        happens(breaks)
        log.store_event(materialization(work.run_id, key, metadata={"by": "a"}))
        log.store_event(entry(work.run_id, KINDS.STEP_SUCCESS))

    assert breaks.count
    assert made(storage, key) == ["a"]
    assert [kind for _, kind in database.events(work.run_id)] == ["ASSET_MATERIALIZATION", "STEP_SUCCESS"]


@pytest.mark.parametrize("happens", [WAYS[0], WAYS[2], WAYS[4]], ids=[NAMES[0], NAMES[2], NAMES[4]])
@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "many at once"])
def test_what_replaces_a_lost_executions_event_replaces_it_once(
    database: Database, breaks: Breaks, happens: Callable[[Breaks], object], batched: bool
) -> None:
    work, lost, second = any_work(), database.process(), database.process()
    keys = [f"{name} of {work.run_id}" for name in ("one", "two")]
    with lost.event_log_storage.holding(database.taken(work, "a")):
        for key in keys:
            lost.event_log_storage.store_event(materialization(work.run_id, key, metadata={"by": "a"}))
    database.silence(work, STALE_SECS + 1)
    log = second.event_log_storage
    with log.holding(database.taken(work, "b")):
        happens(breaks)
        events = [materialization(work.run_id, key, metadata={"by": "b"}) for key in keys]
        if batched:
            log.store_event_batch(events)
        else:
            for event in events:
                log.store_event(event)

    assert breaks.count
    assert [made(second, key) for key in keys] == [["b"], ["b"]]


def test_a_process_that_lost_its_work_while_its_connection_broke_stores_nothing(
    database: Database, breaks: Breaks
) -> None:
    work, storage = any_work(), database.process()

    def taken_over() -> None:
        database.silence(work, STALE_SECS + 1)
        database.taken(work, "b")

    breaks.meanwhile = taken_over
    with storage.event_log_storage.holding(database.taken(work, "a")):
        breaks.before = ["INSERT INTO asset_keys"]
        with pytest.raises(Fenced):
            storage.event_log_storage.store_event(materialization(work.run_id, "any"))
    assert database.events(work.run_id) == []


def test_a_second_try_begins_when_the_first_one_is_over(database: Database) -> None:
    """A connection may break here before the server knows, which goes on with what it has got."""
    work = any_work()
    lease = database.taken(work, "a")
    engine = sqlalchemy.create_engine(database.url, connect_args={"options": "-c lock_timeout=100"})
    with engine.connect() as first, engine.connect() as second:
        assert first.execute(leases_module.HOLD, lease.key).all()
        with pytest.raises(OperationalError, match="lock timeout"):
            second.execute(leases_module.HOLD_ALONE, lease.key)
        second.rollback()
        first.rollback()
        assert second.execute(leases_module.HOLD_ALONE, lease.key).all()
    engine.dispose()


@pytest.mark.parametrize("answers", [0, 1], ids=["broken", "answer lost"])
def test_an_event_of_a_run_that_a_step_executes_is_stored_once_though_a_connection_breaks(
    database: Database, breaks: Breaks, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    run, storage = database.run(), database.process().event_log_storage
    monkeypatch.setenv(within.VARIABLE, within.to_text(database.taken(any_work(), "a")))
    storage.store_event(entry(run.run_id, KINDS.STEP_START))
    breaks.answers, breaks.before = answers, [] if answers else ["INSERT INTO event_logs"]

    storage.store_event(entry(run.run_id, KINDS.STEP_SUCCESS))

    assert [kind for _, kind in database.events(run.run_id)] == ["STEP_START", "STEP_SUCCESS"]
    assert breaks.count == 1


# --- reports on runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [0, 1], ids=["broken", "answer lost"])
def test_a_report_on_a_run_whose_connection_breaks_is_made_all_the_same(
    database: Database, breaks: Breaks, answers: int
) -> None:
    run, storage = database.run(), database.process()
    with storage.event_log_storage.holding(database.taken(Work(run.run_id), "runner@a")):
        breaks.answers, breaks.before = answers, [] if answers else ["UPDATE runs"]

        storage.run_storage.handle_run_event(
            run.run_id, DagsterEvent(KINDS.RUN_SUCCESS.value, job_name="a_job")
        )

        storage.event_log_storage.check_lease()
        assert not storage.event_log_storage._session.given_up
    assert status(storage, run.run_id) == DagsterRunStatus.SUCCESS
    assert breaks.count == 1


def test_outputs_that_do_not_count_any_more_do_not_count_though_a_connection_breaks(
    database: Database, breaks: Breaks
) -> None:
    work, lost, second = any_work(), database.process(), database.process()
    with lost.event_log_storage.holding(database.taken(work, "a")):
        lost.event_log_storage.store_event(entry(work.run_id, KINDS.STEP_OUTPUT, data=an_output()))
    database.silence(work, STALE_SECS + 1)
    lease = database.taken(work, "b")
    breaks.before = ["UPDATE event_logs"]

    with second.event_log_storage.holding(lease):
        assert [kind for _, kind in database.events(work.run_id)] == ["ENGINE_EVENT"]


def an_output() -> StepOutputData:
    return StepOutputData(StepOutputHandle("step", "result"))
