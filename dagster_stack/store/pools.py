"""Slots of Dagster's pools: only the holder of a run takes and returns the run's slots."""

from collections.abc import Callable
from functools import partial

import sqlalchemy
from dagster._utils.concurrency import ConcurrencyClaimStatus
from dagster_postgres.event_log import PostgresEventLogStorage

from dagster_stack.store.session import PooledStorage, Result

#: Until the transaction ends; a process that is frozen in the middle of it loses its connection, and so the lock.
LOCK_POOLS = sqlalchemy.text(
    """
    SELECT set_config('idle_in_transaction_session_timeout', '10s', true),
        pg_advisory_xact_lock(hashtextextended('pools', 0))
    """
)


class FencedSlots(PooledStorage, PostgresEventLogStorage):
    """What Dagster's event log keeps of pools, fenced like all that a process reports.

    A runner that was paused would take a slot for a step that has ended, which nobody gives back, or give back the one
    of a step that its successor has begun.
    """

    def claim_concurrency_slot(
        self, concurrency_key: str, run_id: str, step_key: str, priority: int | None = None
    ) -> ConcurrencyClaimStatus:
        claim = partial(super().claim_concurrency_slot, concurrency_key, run_id, step_key, priority)
        return self._in_pools(run_id, claim)

    def free_concurrency_slot_for_step(self, run_id: str, step_key: str) -> None:
        self._in_pools(run_id, partial(super().free_concurrency_slot_for_step, run_id, step_key))

    def free_concurrency_slots_for_run(self, run_id: str) -> None:
        self._in_pools(run_id, partial(super().free_concurrency_slots_for_run, run_id))

    def _in_pools(self, run_id: str, act: Callable[[], Result]) -> Result:
        """One at a time: else a request during a slot's return would miss it, and wait for another return."""

        def act_alone(_: bool) -> Result:
            with self._connection() as connection:
                connection.execute(LOCK_POOLS)
            return act()

        return self._store_whole(run_id, act_alone)
