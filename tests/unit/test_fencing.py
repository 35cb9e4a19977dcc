"""What a process reports counts only while the work is its own, and once, also when the answer to a write is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import pytest
from dagster import AssetKey, DagsterEventType, EventLogEntry
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from dagster_stack.errors import Fenced, GivenUp
from dagster_stack.store import connections as database_module
from dagster_stack.store import event_log
from dagster_stack.store.event_batch import EventBatch
from dagster_stack.store.event_log import FENCED_INSERT
from dagster_stack.store.leases import Work
from dagster_stack.timing import PATIENCE_SECS, STALE_SECS
from tests.unit.clock import Clock
from tests.unit.database_errors import AWAY
from tests.unit.holders import Database, any_work, entry, materialization

KINDS = DagsterEventType


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(database_module, "time", clock)
    return clock


def taken_over(database: Database, work: Work, holder: str = "b") -> None:
    """Another process gets the work, since the one that has it was paused."""
    database.silence(work, STALE_SECS + 1)
    database.taken(work, holder)


# --- events of a step ---------------------------------------------------------------------------------------------


def test_what_the_holder_reports_is_stored_in_its_order(database: Database) -> None:
    work, storage = any_work(), database.process().event_log_storage

    with storage.holding(database.taken(work, "a")):
        with storage.batching():
            for kind in (KINDS.STEP_START, KINDS.STEP_INPUT, KINDS.STEP_OUTPUT, KINDS.STEP_SUCCESS):
                storage.store_event(entry(work.run_id, kind))
        storage.store_event(entry(work.run_id, KINDS.HOOK_COMPLETED))

    kinds = [kind for _, kind in database.events(work.run_id)]
    assert kinds == ["STEP_START", "STEP_INPUT", "STEP_OUTPUT", "STEP_SUCCESS", "HOOK_COMPLETED"]


def an_event(run_id: str) -> EventLogEntry:
    return entry(run_id, KINDS.STEP_OUTPUT)


def the_end(run_id: str) -> EventLogEntry:
    return entry(run_id, KINDS.STEP_SUCCESS)


def an_asset(run_id: str) -> EventLogEntry:
    return materialization(run_id, f"asset of {run_id}")


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched"])
@pytest.mark.parametrize("event", [an_event, the_end, an_asset], ids=lambda event: event.__name__)
def test_a_process_that_was_paused_while_another_took_over_can_store_nothing(
    database: Database, event: Callable[[str], EventLogEntry], batched: bool
) -> None:
    work, paused = any_work(), database.process().event_log_storage

    def goes_on() -> None:
        # Given a process that has begun a step, and was then frozen for so long that another has it
        with paused.holding(database.taken(work, "a")), paused.batching() if batched else nullcontext():
            paused.store_event(entry(work.run_id, KINDS.STEP_START))
            taken_over(database, work)
            # When it goes on
            paused.store_event(event(work.run_id))

    with pytest.raises(Fenced, match="is another process's now"):
        goes_on()
    # Then nothing of it is there, in no table
    assert database.events(work.run_id) == [("step", "STEP_START")]
    assert not paused.has_asset_key(AssetKey(f"asset of {work.run_id}"))


def test_of_a_batch_that_comes_too_late_nothing_is_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "EventBatch", lambda write: EventBatch(write, 3600.0))
    work, paused = any_work(), database.process().event_log_storage

    def report_three() -> None:
        with paused.holding(database.taken(work, "a")), paused.batching():
            for _ in range(3):
                paused.store_event(an_event(work.run_id))
            taken_over(database, work)

    with pytest.raises(Fenced):
        report_three()

    assert database.events(work.run_id) == []


def test_what_a_holder_says_of_another_run_is_not_fenced(database: Database) -> None:
    """A step that launches or annotates other runs."""
    work, other = any_work(), any_work()
    storage = database.process().event_log_storage

    with storage.holding(database.taken(work, "a")):
        taken_over(database, work)
        storage.store_event(an_event(other.run_id))

    assert database.events(other.run_id) == [("step", "STEP_OUTPUT")]


def test_a_holder_reports_on_after_another_work_of_its_run_changed_hands(database: Database) -> None:
    work, storage = any_work(), database.process().event_log_storage
    beside = Work(work.run_id, "beside", 1)
    database.taken(beside, "c")

    with storage.holding(database.taken(work, "a")):
        taken_over(database, beside)
        storage.store_event(the_end(work.run_id))

    assert database.events(work.run_id) == [("step", "STEP_SUCCESS")]


# --- answers that are lost ----------------------------------------------------------------------------------------------


class LosesAnswers:
    """A connection whose server does what it is told, and breaks before it answers: so many times."""

    def __init__(self, connection: Connection, losses: list[Any]) -> None:
        self._connection, self._losses = connection, losses

    def execute(self, statement: Any, values: Any) -> Any:
        result = self._connection.execute(statement, values)
        if self._losses and self._losses[-1] is statement:
            self._losses.pop()
            raise AWAY
        return result


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Statements whose next answers are lost."""
    losses: list[Any] = []
    connect = database_module.patient_connection

    @contextmanager
    def losing(*arguments: Any) -> Iterator[Any]:
        with connect(*arguments) as connection:
            yield LosesAnswers(connection, losses)

    monkeypatch.setattr(event_log, "patient_connection", losing)
    return losses


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.usefixtures("clock")
def test_a_write_whose_answer_is_lost_is_stored_once(
    database: Database, losses: list[Any], times: int
) -> None:
    work, storage = any_work(), database.process().event_log_storage

    with storage.holding(database.taken(work, "a")):
        storage.store_event(entry(work.run_id, KINDS.STEP_START))
        losses += [FENCED_INSERT] * times
        storage.store_event(entry(work.run_id, KINDS.STEP_OUTPUT))
        storage.store_event(the_end(work.run_id))

    assert losses == []
    assert [kind for _, kind in database.events(work.run_id)] == ["STEP_START", "STEP_OUTPUT", "STEP_SUCCESS"]


@pytest.mark.usefixtures("clock")
def test_the_writes_of_the_next_holder_are_stored_though_their_numbers_begin_again(
    database: Database,
) -> None:
    work, first, second = any_work(), database.process(), database.process()
    with first.event_log_storage.holding(database.taken(work, "a")):
        for _ in range(3):
            first.event_log_storage.store_event(an_event(work.run_id))
    database.silence(work, STALE_SECS + 1)

    with second.event_log_storage.holding(database.taken(work, "b")):
        second.event_log_storage.store_event(the_end(work.run_id))

    assert len(database.events(work.run_id)) == 4


def test_a_process_whose_patience_ends_reports_nothing_any_more(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the server is back: whoever gets the work begins where the log stands, not after a gap."""
    work, storage = any_work(), database.process().event_log_storage
    begin = clock.now
    with storage.holding(database.taken(work, "a")):
        storage.store_event(entry(work.run_id, KINDS.STEP_START))
        # Given a server that stays away for longer than the patience
        with monkeypatch.context() as patch:
            patch.setattr(event_log, "patient_connection", away)
            with pytest.raises(OperationalError):
                storage.store_event(an_event(work.run_id))
        assert clock.now - begin >= PATIENCE_SECS
        # When it is back
        for event in (an_event, the_end, an_asset):
            with pytest.raises(GivenUp, match="the database was away for too long"):
                storage.store_event(event(work.run_id))
        with pytest.raises(GivenUp):
            storage._session.lease_for(work.run_id)
    assert database.events(work.run_id) == [("step", "STEP_START")]

    # And the next work of this process is reported
    other = any_work()
    with storage.holding(database.taken(other, "a")):
        storage.store_event(the_end(other.run_id))
    assert database.events(other.run_id) == [("step", "STEP_SUCCESS")]


def away(*_: Any) -> NoReturn:
    raise AWAY
