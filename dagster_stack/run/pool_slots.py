"""A run's slots in Dagster's pools."""

from dagster import DagsterInstance, DagsterRun
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

from dagster_stack.run.resumed import ResumedRun


class PoolSlots(InstanceConcurrencyContext):
    """Claims slots for steps that are to be executed; steps that have ended need none, however full the pool is."""

    def __init__(self, instance: DagsterInstance, run: DagsterRun, resumed: ResumedRun) -> None:
        super().__init__(instance, run)
        self._resumed = resumed

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        end = self._resumed.last_end(step_key)
        if end is None:
            return super().claim(concurrency_key, step_key, step_priority)
        self._pending_claims.discard(step_key)
        self._pending_timeouts.pop(step_key, None)
        if not end.is_step_up_for_retry:
            # The process that had the run before may have died with it. An attempt that is under way needs it.
            self._instance.event_log_storage.free_concurrency_slot_for_step(self._run_id, step_key)
        return True
