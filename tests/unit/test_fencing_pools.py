"""Slots of pools: who has the run takes them and gives them back, one at a time."""

from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import sqlalchemy
from dagster import DagsterInstance, DagsterRun
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from sqlalchemy.pool import NullPool

from dagster_stack.errors import Fenced
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.leases import Work
from dagster_stack.store.session import Session
from dagster_stack.timing import STALE_SECS
from tests.unit.holders import Database, pool_of_one

POOL = "database"


@pytest.fixture
def log(instance: DagsterInstance) -> Iterator[PooledEventLogStorage]:
    """The event log of the process that has the run at first; its pool has one slot."""
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    with pool_of_one(storage, POOL):
        yield storage


def holders(log: PooledEventLogStorage) -> list[tuple[str, str]]:
    return [(slot.run_id, slot.step_key) for slot in log.get_concurrency_info(POOL).claimed_slots]


def taken_over(database: Database, run: DagsterRun) -> None:
    database.silence(Work(run.run_id), STALE_SECS + 1)
    database.taken(Work(run.run_id), "runner@b")


def test_a_runner_that_lost_its_run_takes_no_slot_for_it(
    database: Database, log: PooledEventLogStorage, instance: DagsterInstance
) -> None:
    """Its successor has seen the step's end by now: nobody would give the slot back."""
    run = database.run()

    def goes_on() -> None:
        with (
            log.holding(database.taken(Work(run.run_id), "runner@a")),
            InstanceConcurrencyContext(instance, run) as slots,
        ):
            taken_over(database, run)
            slots.claim(POOL, "step")

    with pytest.raises(Fenced):
        goes_on()

    assert holders(log) == []
    assert log.get_concurrency_info(POOL).pending_steps == []


def test_a_runner_that_lost_its_run_gives_no_slot_of_its_successor_back(
    database: Database, log: PooledEventLogStorage, instance: DagsterInstance
) -> None:
    # Given a runner whose step waits for a slot that another run has
    run, other = database.run(), database.run()
    log.claim_concurrency_slot(POOL, other.run_id, "other")

    def goes_on() -> None:
        with (
            log.holding(database.taken(Work(run.run_id), "runner@a")),
            InstanceConcurrencyContext(instance, run) as slots,
        ):
            assert not slots.claim(POOL, "step")
            # When it is paused, and its successor gets the slot
            taken_over(database, run)
            successor = database.process().event_log_storage
            successor.free_concurrency_slot_for_step(other.run_id, "other")
            assert successor.claim_concurrency_slot(POOL, run.run_id, "step").is_claimed

    with pytest.raises(Fenced):
        goes_on()

    # Then what the first one clears up as it ends leaves it alone
    assert holders(log) == [(run.run_id, "step")]


def test_a_runner_that_has_its_run_takes_slots_and_gives_them_back(
    database: Database, log: PooledEventLogStorage
) -> None:
    run = database.run()
    with log.holding(database.taken(Work(run.run_id), "runner@a")):
        assert log.claim_concurrency_slot(POOL, run.run_id, "step").is_claimed
        assert holders(log) == [(run.run_id, "step")]
        log.free_concurrency_slot_for_step(run.run_id, "step")
        assert holders(log) == []
        assert log.claim_concurrency_slot(POOL, run.run_id, "step").is_claimed
        log.free_concurrency_slots_for_run(run.run_id)
        assert holders(log) == []


def test_a_slot_that_is_given_back_while_somebody_asks_for_one_is_found(
    database: Database, log: PooledEventLogStorage
) -> None:
    """Dagster looks for a free slot, then says that it waits; who frees one in between sees nobody waiting."""
    # Given a run that has the slot, and another one that asks for it and has found none
    has, asks = database.run(), database.run()
    assert log.claim_concurrency_slot(POOL, has.run_id, "step").is_claimed
    engine = sqlalchemy.create_engine(database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    others = PooledEventLogStorage(database.url, engine, Session())
    frees = Thread(target=others.free_concurrency_slot_for_step, args=(has.run_id, "step"))

    def before_insert(*arguments: Any) -> None:
        if "INSERT INTO pending_steps" in arguments[2]:
            # When the first one gives it back at this moment, if it may
            frees.start()
            frees.join(0.5)

    sqlalchemy.event.listen(database.engine, "before_cursor_execute", before_insert)
    try:
        log.claim_concurrency_slot(POOL, asks.run_id, "step")
    finally:
        sqlalchemy.event.remove(database.engine, "before_cursor_execute", before_insert)
    frees.join(10)

    # Then the next look finds it
    assert log.claim_concurrency_slot(POOL, asks.run_id, "step").is_claimed
    assert holders(log) == [(asks.run_id, "step")]
