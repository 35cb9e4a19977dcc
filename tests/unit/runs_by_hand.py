"""Runs of the jobs in `step_jobs`, made and executed in this process as the launcher and the workers would."""

from collections.abc import Sequence
from typing import Any

from dagster import (
    DagsterEvent,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    JobDefinition,
    reconstructable,
)
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode

from dagster_stack.errors import AlreadyDone
from dagster_stack.messaging.messages import StepMessage, step_message
from dagster_stack.step.plan_cache import planned_job
from dagster_stack.step.step_execution import StepExecution


def started_run(
    instance: DagsterInstance,
    job: Any,
    run_config: dict[str, Any] | None = None,
    status: DagsterRunStatus = DagsterRunStatus.STARTED,
    **more: Any,
) -> DagsterRun:
    """A run that has a process, with the address of its code as a launcher stores it."""
    recon = reconstructable(job)
    assert isinstance(recon, ReconstructableJob)
    definition = job if isinstance(job, JobDefinition) else job()
    return instance.create_run_for_job(
        definition,
        run_config=run_config,
        tags=definition.run_tags,
        status=status,
        job_code_origin=recon.get_python_origin(),
        **more,
    )


def message(
    instance: DagsterInstance, run: DagsterRun, key: str, state: KnownExecutionState | None = None
) -> StepMessage:
    """What the executor sends for a step."""
    state = state or KnownExecutionState()
    planned = planned_job(instance, run)
    step = planned.plan_for(key, state).get_step_by_key(key)
    return step_message(run, step, state, RetryMode.DEFERRED)  # type: ignore[arg-type]


def execute(step: StepMessage, holder: str = "worker@here") -> list[str]:
    """Execute a step as a worker's process does; returns when the run was woken: the last event by then."""
    woken: list[str] = []
    execution = StepExecution(step, holder, lambda: woken.append("woken"))
    try:
        execution.run()
    except AlreadyDone:
        execution.skip()
    return woken


def events(instance: DagsterInstance, run_id: str) -> Sequence[DagsterEvent]:
    """All events of a run, in the order of its log."""
    found = [entry.dagster_event for entry in instance.all_logs(run_id)]
    return [event for event in found if event]


def kinds(instance: DagsterInstance, run_id: str, step_key: str | None = None) -> list[str]:
    """The kinds of the events of a run, or of one of its steps."""
    return [
        event.event_type_value
        for event in events(instance, run_id)
        if step_key is None or event.step_key == step_key
    ]


def said(instance: DagsterInstance, run_id: str) -> list[str]:
    """What stands in the run's log for people to read."""
    return [entry.message for entry in instance.all_logs(run_id)]
