"""Inner runs that are left over: steps executed them, and these executions are over."""

import logging

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.stats import StepEventStatus
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.failure_reasons import Reason
from dagster_stack.logs.context import bound
from dagster_stack.step.step_failure import report_failure
from dagster_stack.store.leases import Lease, Leases
from dagster_stack.store.within import lease_of

logger = logging.getLogger(__name__)

GOING_ON = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def end_left(instance: DagsterInstance, leases: Leases) -> None:
    """End those that no process can go on with: as failed, or as canceled if that was wanted."""
    found = instance.get_runs(RunsFilter(statuses=GOING_ON))
    executed_by = {run.run_id: lease for run in found if (lease := lease_of(run))}
    lost = set(leases.lost(executed_by.values()))
    for run_id, lease in executed_by.items():
        # It may have ended before its execution did. After that nothing can change it.
        run = instance.get_run_by_id(run_id) if lease in lost else None
        if run and run.status in GOING_ON:
            with bound(run=run_id):
                _end(instance, run, _text(lease, leases))


def _text(lease: Lease, leases: Leases) -> str:
    end = leases.end_of(lease)
    why = f"that execution is lost: {end}" if end else f"that execution, by {lease.holder}, is over"
    return (
        f"This run was executed within {lease.work}, and {why}. It can't go on; when that step is executed again, it"
        " begins a new run. For a run that outlives its step, launch it (a RunRequest, or"
        " DagsterGraphQLClient)."
    )


def _end(instance: DagsterInstance, run: DagsterRun, text: str) -> None:
    logger.warning("run %s is ended: %s", run.run_id, text, extra={"action": "run.left"})
    if run.status == DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, text)
        return
    for step in instance.get_run_step_stats(run.run_id):
        if step.status == StepEventStatus.IN_PROGRESS:
            report_failure(instance, run, step.step_key, Reason.LOST_WITH_STEP, text)
    error = SerializableErrorInfo(text, [], None)
    instance.report_run_failed(run, text, JobFailureData(error, RunFailureReason.UNEXPECTED_TERMINATION))
