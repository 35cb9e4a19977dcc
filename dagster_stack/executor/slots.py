"""A run's slots in Dagster's pools."""

from collections.abc import Mapping, Sequence

from dagster import DagsterEvent, DagsterInstance, DagsterRun
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

from dagster_stack.executor.event_tail import is_end


class PoolSlots(InstanceConcurrencyContext):
    """Claims slots for what is to be executed; what has ended needs none, however full its pool is.

    `reported`: of a run that goes on, what steps said that it has not come to yet.
    """

    def __init__(
        self, instance: DagsterInstance, run: DagsterRun, reported: Mapping[str, Sequence[DagsterEvent]]
    ) -> None:
        super().__init__(instance, run)
        self._reported = reported

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        ends = [event for event in self._reported.get(step_key, ()) if is_end(event)]
        if not ends:
            return super().claim(concurrency_key, step_key, step_priority)
        self._pending_claims.discard(step_key)
        self._pending_timeouts.pop(step_key, None)
        if not ends[-1].is_step_up_for_retry:
            # The process that had the run before may have died with it. An attempt that is under way needs it.
            self._instance.event_log_storage.free_concurrency_slot_for_step(self._run_id, step_key)
        return True
