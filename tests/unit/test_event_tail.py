"""A run's events as its executor sees them: each once, in order, also those that become visible late."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, EventLogEntry, EventLogRecord
from dagster._core.event_api import EventLogCursor
from dagster._core.execution.plan.objects import StepSuccessData
from dagster._core.storage.event_log.base import EventLogConnection
from dagster._core.test_utils import create_run_for_test
from dagster._serdes import serialize_value
from sqlalchemy.engine import Connection

from dagster_stack.run import event_tail
from dagster_stack.run.event_tail import PAGE, EventTail
from dagster_stack.store.connections import pooled_engine
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.session import Session

KINDS = {DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_START}


def event(name: str, kind: DagsterEventType = DagsterEventType.STEP_SUCCESS) -> DagsterEvent:
    data = StepSuccessData(1.0) if kind is DagsterEventType.STEP_SUCCESS else None
    return DagsterEvent(
        event_type_value=kind.value, job_name="a_job", step_key=name, event_specific_data=data
    )


@dataclass
class Log:
    """An event log in memory that answers `get_records_for_run` as Dagster's SQL storages do.

    They return the rows whose id is greater than the cursor's, the lowest ids first, at most `limit` of them,
    and say in `has_more` whether there are as many as the limit. A row's number is taken when it is inserted
    and the row is seen when it is committed, so that of two writers the later number can be visible first.
    """

    rows: dict[int, str] = field(default_factory=dict)
    #: Not the stack's own.
    event_log_storage: None = None
    #: The cursor of each query.
    queries: list[int] = field(default_factory=list)

    def get_records_for_run(
        self, run_id: str, cursor: str, of_type: set[DagsterEventType], limit: int
    ) -> EventLogConnection:
        assert (run_id, of_type) == ("run", KINDS)
        after = EventLogCursor.parse(cursor).storage_id()
        self.queries.append(after)
        found = [number for number in sorted(self.rows) if number > after][:limit]
        records = [EventLogRecord(number, entry("run", event(self.rows[number]))) for number in found]
        return EventLogConnection(records, cursor, has_more=len(found) == limit)


def entry(run_id: str, dagster_event: DagsterEvent | None) -> EventLogEntry:
    return EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id=run_id,
        timestamp=1.0,
        step_key=dagster_event.step_key if dagster_event else None,
        job_name="a_job",
        dagster_event=dagster_event,
    )


def tail_of(log: Log) -> EventTail:
    return EventTail(cast(DagsterInstance, log), "run", KINDS)


def steps(events: Any) -> Sequence[str | None]:
    return [event.step_key for event in events]


# --- a real log ------------------------------------------------------------------------------------------------


def test_every_event_of_the_run_comes_once_and_in_the_order_of_the_log(instance: DagsterInstance) -> None:
    # Given a run with events of several kinds, lines of people's own, and another run
    run, other = create_run_for_test(instance), create_run_for_test(instance)
    tail = EventTail(instance, run.run_id, KINDS)
    assert steps(tail.read()) == []
    store(instance, run, event("a"), event("b", DagsterEventType.STEP_START))
    store(instance, run, event("c", DagsterEventType.STEP_SKIPPED), None)
    store(instance, other, event("x"))

    # Then each read hands out what is new and of the kinds that were asked for
    assert steps(tail.read()) == ["a", "b"]
    store(instance, run, event("d"))
    store(instance, other, event("y"))
    store(instance, run, event("e"))
    assert steps(tail.read()) == ["d", "e"]
    assert steps(tail.read()) == []
    assert steps(tail.reread()) == []


def test_a_log_of_many_pages_is_read_to_its_end(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given pages of two rows
    monkeypatch.setattr(event_tail, "PAGE", 2)
    run = create_run_for_test(instance)
    names = [f"step_{number}" for number in range(7)]
    store(instance, run, *(event(name) for name in names))

    assert steps(EventTail(instance, run.run_id, KINDS).read()) == names


def store(instance: DagsterInstance, run: DagsterRun, *events: DagsterEvent | None) -> None:
    for each in events:
        instance.event_log_storage.store_event(entry(run.run_id, each))


# --- how much is read ------------------------------------------------------------------------------------------


def test_a_page_more_is_asked_for_only_after_a_full_one() -> None:
    log = Log({number: f"step_{number}" for number in range(1, PAGE + 3)})
    tail = tail_of(log)

    assert len(steps(tail.read())) == PAGE + 2

    assert log.queries == [-1, PAGE]
    assert steps(tail.read()) == []
    assert log.queries == [-1, PAGE, PAGE + 2]


def test_what_was_seen_long_ago_is_not_read_again() -> None:
    """Reading stays as cheap at the end of a run of 10,000 steps as at its beginning."""
    # Given a log that grows and is looked back at now and then
    log = Log()
    tail = tail_of(log)
    for number in range(1, 200):
        log.rows[number] = f"step_{number}"
        assert steps(tail.look_back() if number % 10 == 0 else tail.read()) == [f"step_{number}"]

    # Then no look goes back further than the look back before the last one
    assert min(log.queries[100:]) >= 80
    assert len(log.queries) == 199


# --- rows that are visible late --------------------------------------------------------------------------------


def test_an_event_that_becomes_visible_behind_the_cursor_is_handed_out_once() -> None:
    # Given a writer that took row 2 and has not committed it when row 3 is there
    log = Log({1: "a", 3: "c"})
    tail = tail_of(log)
    assert steps(tail.read()) == ["a", "c"]

    # When it commits
    log.rows[2] = "b"

    # Then it is found at the next look back, and is handed out once
    assert steps(tail.look_back()) == ["b"]
    assert steps(tail.read()) == steps(tail.look_back()) == steps(tail.look_back()) == []


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_what_appears_before_the_second_look_back_is_never_missed(reads: int) -> None:
    """However many reads there are between: a statement takes no longer than the time between two looks back."""
    # Given rows of which each second one is visible only after the next look back
    log = Log()
    tail = tail_of(log)
    seen: list[str | None] = []
    late: dict[int, str] = {}

    # When the log is read and looked back at in turn
    for number in range(1, 101):
        (late if number % 2 else log.rows)[number] = f"step_{number}"
        for _ in range(reads):
            seen += steps(tail.read())
        if number % 5 == 0:
            seen += steps(tail.look_back())
            log.rows |= late
            late.clear()
    log.rows |= late
    seen += steps(tail.look_back())

    # Then all were handed out, and none twice
    assert sorted(seen, key=str) == sorted((f"step_{number}" for number in range(1, 101)), key=str)


class Writers:
    """The stack's own storage, and transactions that write to its event log beside each other."""

    def __init__(self, database_url: str) -> None:
        self.engine = pooled_engine(database_url, 4)
        self.storage = PooledEventLogStorage(database_url, self.engine, Session())
        self.run_id = str(uuid4())
        #: Where each read began.
        self.reads: list[int] = []

    def tail(self) -> EventTail:
        instance = SimpleNamespace(event_log_storage=self.storage)
        return EventTail(cast(DagsterInstance, instance), self.run_id, KINDS)

    def insert(self, connection: Connection, step: str) -> int:
        """Insert a row, which gets the next number; returns that."""
        statement = sqlalchemy.text(
            "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)"
            " VALUES (:run, :event, 'STEP_SUCCESS', now(), :step) RETURNING id"
        )
        text = serialize_value(entry(self.run_id, event(step)))
        return int(
            connection.execute(statement, {"run": self.run_id, "step": step, "event": text}).scalar_one()
        )

    def add(self, *names: str) -> int:
        """Rows that are there at once; returns the last one's number."""
        with self.engine.connect() as connection:
            return [self.insert(connection, name) for name in names][-1]

    @contextmanager
    def under_way(self, step: str) -> Iterator[None]:
        """A transaction that has its row's number, and commits at the end."""
        engine = self.engine.execution_options(isolation_level="READ COMMITTED")
        with engine.begin() as connection:
            self.insert(connection, step)
            yield


@pytest.fixture
def writers(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Writers:
    writers = Writers(database_url)
    news = writers.storage.news

    def noted(run_id: str, after: int, *more: Any) -> Any:
        writers.reads.append(after)
        return news(run_id, after, *more)

    monkeypatch.setattr(writers.storage, "news", noted)
    return writers


def test_with_the_stacks_storage_each_read_finds_what_became_visible_late_and_first(writers: Writers) -> None:
    """A step's success that is seen without its outputs lets Dagster skip what waits for them."""
    tail = writers.tail()
    # Given a reader that looks many times while a transaction with an earlier row is open
    writers.add("a")
    with writers.under_way("b"):
        writers.add("c")
        assert steps(tail.read()) == ["a", "c"]
        writers.add("d")
        assert steps(tail.read()) == ["d"]
        assert steps(tail.read()) == []
    # When it has committed, and another row comes after it
    writers.add("e")
    # Then the next read has both, in the order of the log, and nothing twice
    assert steps(tail.read()) == ["b", "e"]
    assert (
        steps(tail.read()) == steps(tail.look_back()) == steps(tail.look_back()) == steps(tail.reread()) == []
    )


def test_of_two_writers_whose_rows_alternate_the_later_ones_come_in_order(writers: Writers) -> None:
    """The newest transaction is under way, and none that is newer has ended: a snapshot's end is before it."""
    tail = writers.tail()
    engine = writers.engine.execution_options(isolation_level="READ COMMITTED")
    with engine.begin() as first, engine.begin() as second:
        writers.insert(first, "output of the first")
        writers.insert(second, "output of the second")
        writers.insert(first, "success of the first")
        first.commit()
        assert steps(tail.read()) == ["output of the first", "success of the first"]
        writers.insert(second, "success of the second")
    assert steps(tail.read()) == ["output of the second", "success of the second"]


def test_what_one_transaction_holds_back_is_found_while_others_come_and_go(writers: Writers) -> None:
    tail = writers.tail()
    seen: list[str | None] = []
    with writers.under_way("first"):
        for number in range(5):
            with writers.under_way(f"late {number}"):
                writers.add(f"early {number}")
                seen += steps(tail.read())
            seen += steps(tail.read())
    seen += steps(tail.read())
    assert seen == [*(f"{how} {number}" for number in range(5) for how in ("early", "late")), "first"]


def test_where_nothing_is_under_way_a_read_begins_where_the_last_one_ended(writers: Writers) -> None:
    """At 40 steps a second everything else would read the same rows again and again."""
    tail = writers.tail()
    for name in "abc":
        last = writers.add(name)
        assert steps(tail.read()) == [name]
        assert steps(tail.read()) == []
        assert writers.reads[-1] == last


def test_a_transaction_that_takes_for_ever_does_not_let_reads_grow(writers: Writers) -> None:
    tail = writers.tail()
    with writers.under_way("never"):
        for number in range(10):
            writers.add(str(number))
            assert steps(tail.look_back()) == [str(number)]
        list(tail.read())
        # Where the log ended when it was looked back at before the last time.
        assert writers.reads[-1] == writers.reads[-2] + 1


def test_a_reread_finds_what_was_never_handed_out_however_old_it_is() -> None:
    # Given a row that appears very late, far behind the cursor
    log = Log({1: "a", 3: "c"})
    tail = tail_of(log)
    assert steps(tail.read()) == ["a", "c"]
    for number in range(4, 20):
        log.rows[number] = f"step_{number}"
        list(tail.look_back())
    log.rows[2] = "b"
    assert steps(tail.look_back()) == steps(tail.read()) == []

    # When the whole log is read again
    again = steps(tail.reread())

    # Then it alone is new, and reading goes on at the end
    assert again == ["b"]
    log.rows[20] = "last"
    assert steps(tail.read()) == ["last"]
    assert steps(tail.reread()) == []
