"""Several daemons: one leads, the next one takes over, and nothing that a former one writes is stored."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._daemon.types import DaemonHeartbeat

from dagster_stack.errors import Fenced
from dagster_stack.services import leadership as module
from dagster_stack.services.health import EXIT_CODE
from dagster_stack.services.leadership import ALONE_SECS, SILENCE_SECS, Leadership, hold
from dagster_stack.store import connections
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.leases import LEAD
from dagster_stack.timing import STALE_SECS
from tests.unit.holders import Database, entry
from tests.waiting import wait_until


class Daemons:
    """Daemons on a database, all in this process: what is written is written by the one that leads, or led last."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.exits: list[tuple[str, int]] = []
        self.last_sign = 0.0
        self.made: list[Leadership] = []

    def make(self, name: str) -> Leadership:
        made = Leadership(
            self.database.leases, lambda: self.last_sign, name, lambda code: self.exits.append((name, code))
        )
        self.made.append(made)
        return made

    def leading(self, name: str) -> Leadership:
        made = self.make(name)
        assert made._take()
        return made

    def storage_of(self, leadership: Leadership) -> PooledPostgresStorage:
        """What a leader writes with, also when it leads no more."""
        assert leadership._lease
        connections.guard_writes(partial(hold, leadership._lease))
        return self.database.process()


@pytest.fixture
def daemons(database: Database) -> Iterator[Daemons]:
    database.leases.dissolve(LEAD)
    found = Daemons(database)
    yield found
    connections.guard_writes(None)
    for each in found.made:
        if each._renewal:
            each._renewal.__exit__()
    database.leases.dissolve(LEAD)


# --- who leads ----------------------------------------------------------------------------------------------------


def test_one_leads_and_the_other_stands_by(daemons: Daemons) -> None:
    first, second = daemons.leading("a"), daemons.make("b")

    assert not second._take()

    assert first.leads
    assert not second.leads
    assert second.complaint() is None


def test_the_next_one_leads_at_once_after_one_that_stopped(daemons: Daemons) -> None:
    first, second = daemons.leading("a"), daemons.make("b")
    standing_by = threading.Thread(target=second.await_lead)
    standing_by.start()

    first.release()

    standing_by.join(5)
    assert second.leads


def test_the_next_one_leads_when_one_gives_no_sign_of_life(daemons: Daemons) -> None:
    first, second = daemons.leading("a"), daemons.make("b")
    first._renewal.__exit__()  # type: ignore[union-attr]

    daemons.database.silence(LEAD, STALE_SECS - 3)
    assert not second._take()

    daemons.database.silence(LEAD, STALE_SECS + 1)
    assert second._take()


def test_one_that_was_killed_and_started_again_leads_on(daemons: Daemons) -> None:
    """Its container has the same name."""
    first = daemons.leading("a")
    first._renewal.__exit__()  # type: ignore[union-attr]

    assert daemons.make("a")._take()


def test_a_leader_ends_when_another_one_leads(daemons: Daemons) -> None:
    daemons.leading("a")

    daemons.database.silence(LEAD, STALE_SECS + 1)
    assert daemons.make("b")._take()

    wait_until(
        lambda: daemons.exits, 20, "the former leader ends", until=lambda seen: seen == [("a", EXIT_CODE)]
    )


def test_what_a_takeover_leaves_does_not_grow(daemons: Daemons) -> None:
    for name in ("a", "b", "c"):
        daemons.leading(name).release()

    ((returns, losses),) = daemons.database.execute(
        "SELECT jsonb_array_length(returns), jsonb_array_length(losses) FROM dagster_stack_claims WHERE run_id = :run",
        run=LEAD.run_id,
    )
    assert (returns, losses) == (1, 0)


def test_the_lead_is_not_pruned_with_the_leases_of_runs(daemons: Daemons) -> None:
    leading = daemons.leading("a")

    daemons.database.leases.prune(age=0)

    assert daemons.database.leases.renew(leading._lease)  # type: ignore[arg-type]


# --- beside one that knows no lease ----------------------------------------------------------------------------------


def test_one_does_not_lead_while_a_daemon_without_a_lease_may_be_there(daemons: Daemons) -> None:
    """DAEMONS=1 became 2: nothing refuses the writes of the one before."""
    waiting = daemons.make("a")
    daemons.last_sign = time.time() - ALONE_SECS + 5
    assert not waiting._take()

    daemons.last_sign = time.time() - ALONE_SECS
    assert waiting._take()


def test_the_signs_of_life_of_a_former_leader_hold_up_nobody(daemons: Daemons) -> None:
    daemons.leading("a").release()
    daemons.last_sign = time.time()

    assert daemons.make("b")._take()


def test_a_daemon_that_is_alone_ends_the_lead_of_all_others(daemons: Daemons) -> None:
    """DAEMONS=2 became 1."""
    storage = daemons.storage_of(daemons.leading("a"))

    daemons.database.leases.dissolve(LEAD)

    with pytest.raises(Fenced):
        storage.run_storage.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "a", []))
    wait_until(lambda: daemons.exits, 20, "the former leader ends")


def test_the_last_sign_of_life_is_that_of_any_daemon() -> None:
    with DagsterInstance.ephemeral() as instance:
        assert module.last_sign(instance) == 0
        for name, at in (("SENSOR", 20.0), ("BACKFILL", 30.0), ("SCHEDULER", 10.0)):
            instance.add_daemon_heartbeat(DaemonHeartbeat(at, name, "id", []))

        assert module.last_sign(instance) == 30


# --- what is stored -----------------------------------------------------------------------------------------------------


def add_run(storage: PooledPostgresStorage) -> Any:
    run = DagsterRun("a_job", run_id=str(uuid4()), status=DagsterRunStatus.NOT_STARTED)
    return storage.run_storage.add_run(run)


def create_tick(storage: PooledPostgresStorage) -> Any:
    name = str(uuid4())
    return storage.schedule_storage.create_tick(
        TickData(
            name, "a_schedule", InstigatorType.SCHEDULE, TickStatus.STARTED, time.time(), selector_id=name
        )
    )


def beat(storage: PooledPostgresStorage) -> Any:
    storage.run_storage.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "id", []))
    return storage.run_storage.get_daemon_heartbeats()


def note(storage: PooledPostgresStorage) -> Any:
    storage.run_storage.set_cursor_values({"a": "b"})
    return storage.run_storage.get_cursor_values({"a"})


WRITES = [add_run, create_tick, beat, note]


@pytest.mark.parametrize("write", WRITES)
def test_what_a_leader_writes_is_stored(
    daemons: Daemons, write: Callable[[PooledPostgresStorage], Any]
) -> None:
    storage = daemons.storage_of(daemons.leading("a"))

    assert write(storage)


@pytest.mark.parametrize("write", WRITES)
def test_what_a_former_leader_writes_is_refused(
    daemons: Daemons, write: Callable[[PooledPostgresStorage], Any]
) -> None:
    """It was frozen, or cut off, and may be in the middle of a tick."""
    former = daemons.leading("a")
    former._renewal.__exit__()  # type: ignore[union-attr]
    daemons.database.silence(LEAD, STALE_SECS + 1)
    daemons.leading("b")
    storage = daemons.storage_of(former)

    with pytest.raises(Fenced, match="the lead of the daemons is another process's now"):
        write(storage)


def test_what_a_former_leader_reports_of_a_run_is_refused(daemons: Daemons) -> None:
    """A dequeue: the run stays as the present leader has it."""
    storage = daemons.storage_of(former := daemons.leading("a"))
    run = add_run(storage)
    former.release()

    for kind in (DagsterEventType.PIPELINE_STARTING, DagsterEventType.ENGINE_EVENT):
        with pytest.raises(Fenced):
            storage.event_log_storage.store_event(entry(run.run_id, kind, step_key=""))

    assert daemons.database.events(run.run_id) == []


def test_a_former_leader_reads_as_before(daemons: Daemons) -> None:
    storage = daemons.storage_of(former := daemons.leading("a"))
    former.release()

    assert storage.schedule_storage.get_ticks(name := str(uuid4()), name) == []


def test_a_tick_of_a_leader_has_its_number(daemons: Daemons) -> None:
    storage = daemons.storage_of(daemons.leading("a"))
    made = create_tick(storage)

    storage.schedule_storage.update_tick(made.with_status(TickStatus.SKIPPED))

    (found,) = storage.schedule_storage.get_ticks(made.instigator_origin_id, made.selector_id)
    assert (found.tick_id, found.status) == (made.tick_id, TickStatus.SKIPPED)


def test_the_next_leader_does_not_wait_for_one_that_was_frozen_in_the_middle_of_a_write(
    daemons: Daemons,
) -> None:
    former = daemons.leading("a")
    former._renewal.__exit__()  # type: ignore[union-attr]
    with daemons.database.engine.connect() as kept:
        connection = kept.execution_options(isolation_level="READ COMMITTED")
        # Given a transaction that never goes on
        connection.begin()
        hold(former._lease, connection)  # type: ignore[arg-type]
        daemons.database.silence(LEAD, STALE_SECS + 1)

        # When another one takes over
        begin = time.monotonic()
        assert daemons.make("b")._take()

        # Then the server has ended that transaction
        assert time.monotonic() - begin < 5
        connection.invalidate()


# --- standing by ----------------------------------------------------------------------------------------------------------


def test_one_is_unwell_until_it_has_loaded_the_code(daemons: Daemons) -> None:
    assert daemons.make("a").complaint() == "it loads the code"


def test_one_that_can_not_ask_who_leads_is_unwell(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons.leading("a")
    standing_by = daemons.make("b")
    standing_by._take()
    now = time.monotonic()

    monkeypatch.setattr("dagster_stack.services.leadership.time.monotonic", lambda: now + SILENCE_SECS + 1)

    assert "is not known" in (standing_by.complaint() or "")


def test_one_whose_code_can_not_be_loaded_anew_stands_by_all_the_same(daemons: Daemons) -> None:
    first, second = daemons.leading("a"), daemons.make("b")
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        first.release()
        raise ValueError("a module is broken")

    second.await_lead(fail)

    assert tries == [1]
    assert second.leads


@pytest.mark.parametrize(("host", "end"), [("", ""), ("box2", " on box2")])
def test_a_daemon_of_a_further_host_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, host: str, end: str
) -> None:
    monkeypatch.setenv("DAGSTER_STACK_HOST", host)

    assert module.own_name() == f"daemon@{socket.gethostname()}{end}"
