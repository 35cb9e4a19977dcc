"""Events that wait an instant for each other: none is lost, none is late, and their order is kept."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from dagster import EventLogEntry

from dagster_stack.store import event_batch
from dagster_stack.store.event_batch import SIZE, EventBatch
from tests.waiting import wait_until

#: A delay after which no test waits: what is written then was written for another reason.
NEVER = 3600.0


class Table:
    """What a storage's `write` does: it keeps all events of a call, or none and raises.

    `fail_with` is raised instead, as while Postgres is away or a row is refused.
    """

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.fail_with: Exception | None = None
        self.written = threading.Event()

    def write(self, events: Sequence[EventLogEntry]) -> None:
        try:
            if self.fail_with:
                raise self.fail_with
            self.writes.append([event.user_message for event in events])
        finally:
            self.written.set()

    @property
    def rows(self) -> list[str]:
        return [row for write in self.writes for row in write]


@pytest.fixture
def table() -> Table:
    return Table()


@contextmanager
def batch_of(table: Table, delay: float = NEVER) -> Iterator[EventBatch]:
    batch = EventBatch(table.write, delay)
    try:
        yield batch
    finally:
        table.fail_with = None
        batch._error = None
        batch.close()


def event(name: str) -> EventLogEntry:
    return EventLogEntry(error_info=None, level=10, user_message=name, run_id="run", timestamp=1.0)


def test_a_flush_writes_all_that_waits_in_one_call_and_in_its_order(table: Table) -> None:
    with batch_of(table) as batch:
        # Given events that wait
        for name in "abc":
            batch.add(event(name))
        assert table.writes == []

        # When they are flushed
        batch.flush()

        # Then they are one write; and there is none when nothing waits
        assert table.writes == [["a", "b", "c"]]
        batch.flush()
        assert table.writes == [["a", "b", "c"]]


def test_events_are_written_by_themselves_after_the_delay(table: Table) -> None:
    """A person who watches a long step sees what it logs."""
    with batch_of(table, delay=0.05) as batch:
        batch.add(event("a"))
        batch.add(event("b"))

        wait_until(lambda: table.rows, 5, "the events are written", pause=0.01)
        batch.add(event("c"))
        wait_until(lambda: table.rows, 5, "the third one too", until=lambda rows: len(rows) == 3, pause=0.01)

    assert table.rows == ["a", "b", "c"]


def test_many_events_are_written_without_waiting(table: Table) -> None:
    with batch_of(table) as batch:
        for number in range(SIZE - 1):
            batch.add(event(str(number)))
        assert table.writes == []

        batch.add(event("the last"))

        assert [len(write) for write in table.writes] == [SIZE]
    assert table.rows[-1] == "the last"


def test_close_writes_the_rest_and_ends_the_thread(table: Table) -> None:
    threads = threading.active_count()
    batch = EventBatch(table.write, NEVER)
    batch.add(event("a"))

    batch.close()

    assert table.rows == ["a"]
    assert threading.active_count() == threads


def test_an_error_while_flushing_reaches_the_caller_and_loses_nothing(table: Table) -> None:
    with batch_of(table) as batch:
        # Given a database that refuses
        table.fail_with = RuntimeError("refused")
        batch.add(event("a"))
        with pytest.raises(RuntimeError, match="refused"):
            batch.flush()

        # When it is well again, then all is written, in its order
        table.fail_with = None
        batch.add(event("b"))
        batch.flush()

    assert table.rows == ["a", "b"]


def test_an_error_in_the_background_is_raised_by_the_next_flush_and_loses_nothing(table: Table) -> None:
    with batch_of(table, delay=0.01) as batch:
        # Given a write in the background that failed
        table.fail_with = RuntimeError("the disk is full")
        batch.add(event("a"))
        assert table.written.wait(5)
        wait_until(lambda: batch._error, 5, "the error is kept", pause=0.01)

        # Then whoever flushes next learns of it, once
        table.fail_with = None
        with pytest.raises(RuntimeError, match="the disk is full"):
            batch.flush()

        # And the events are still there
        batch.add(event("b"))
        batch.flush()

    assert table.rows == ["a", "b"]


def failed_batch(table: Table) -> EventBatch:
    """A batch whose write in the background failed."""
    batch = EventBatch(table.write, 0.01)
    table.fail_with = RuntimeError("the disk is full")
    batch.add(event("a"))
    wait_until(lambda: batch._error, 5, "the write in the background failed", pause=0.01)
    return batch


def test_after_an_error_in_the_background_events_are_written_at_the_latest_on_close(table: Table) -> None:
    batch = failed_batch(table)
    table.fail_with = None

    # Given a caller who met the error and goes on
    with pytest.raises(RuntimeError):
        batch.flush()
    batch.add(event("b"))
    batch.close()

    assert table.rows == ["a", "b"]


def test_close_after_an_unseen_error_raises_it_and_writes_nothing_twice(table: Table) -> None:
    """The step whose events these are must not count as executed."""
    batch = failed_batch(table)

    with pytest.raises(RuntimeError, match="the disk is full"):
        batch.close()

    assert table.rows == []


def test_threads_that_add_at_the_same_time_keep_each_their_own_order(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resources and loggers of a step may report from threads of their own."""
    monkeypatch.setattr(event_batch, "SIZE", 7)
    names = [[f"{thread}-{number:03d}" for number in range(200)] for thread in "abcd"]

    def add_all(own: list[str]) -> None:
        for name in own:
            batch.add(event(name))

    with batch_of(table, delay=0.001) as batch:
        threads = [threading.Thread(target=add_all, args=(own,)) for own in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

    assert len(table.rows) == 800
    for own in names:
        assert [row for row in table.rows if row[0] == own[0][0]] == own
