"""A run's job with its plan, kept for all runs that configure it the same way.

Dagster's own way builds all of that anew for every step: 100 ms for a job of 50 ops, seconds for one of 1,000.
"""

import json
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from dagster import DagsterInstance, DagsterRun, JobDefinition, RepositoryDefinition
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.handle import ResolvedFromDynamicStepHandle, StepHandle
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import (
    ExecutionStep,
    IExecutionStep,
    UnresolvedCollectExecutionStep,
    UnresolvedMappedExecutionStep,
)
from dagster._core.system_config.objects import ResolvedRunConfig
from dagster._utils.hosted_user_process import recon_job_from_origin

from dagster_stack.messaging.messages import upstream_outputs
from dagster_stack.step.fresh import fresh_step

#: Jobs, as they are configured and selected by runs, that a process keeps: a plan of 1,000 steps takes 10 MB.
KEPT_JOBS = 8


@dataclass(frozen=True)
class PlannedJob:
    """A job as a run configures it, and the plan of all its steps."""

    job: ReconstructableJob
    definition: JobDefinition
    repository: RepositoryDefinition | None
    config: ResolvedRunConfig
    plan: ExecutionPlan

    @classmethod
    def of_plan(cls, job: ReconstructableJob, run: DagsterRun, plan: ExecutionPlan) -> "PlannedJob":
        """A job that a run's process has loaded and planned already."""
        definition = job.get_definition()
        return cls(
            job=job,
            definition=definition,
            repository=job.get_repository_definition(),
            # User code may change what its run says.
            config=ResolvedRunConfig.build(definition, deepcopy(run.run_config)),
            plan=plan,
        )

    def step(self, key: str, state: KnownExecutionState | None = None) -> IExecutionStep:
        """A step by its key. A collecting one is made from the mapping keys in `state`, when given."""
        handle = StepHandle.parse_from_key(key)
        if isinstance(handle, ResolvedFromDynamicStepHandle):
            unresolved = self.plan.step_dict[handle.unresolved_form]
            assert isinstance(unresolved, UnresolvedMappedExecutionStep)
            mapping = {unresolved.resolved_by_output_name: [handle.mapping_key]}
            return unresolved.resolve({unresolved.resolved_by_step_key: mapping})[0]
        step = self.plan.step_dict[handle]
        if state and isinstance(step, UnresolvedCollectExecutionStep):
            return step.resolve(state.dynamic_mappings)
        return step

    def plan_for(self, step_key: str, state: KnownExecutionState) -> ExecutionPlan:
        """A plan that executes one step, made of this step and those whose outputs it loads.

        Dagster's `build_subset_plan` would keep, and go through, all steps of the job.
        """
        step = self.step(step_key, state)
        assert isinstance(step, ExecutionStep)
        upstream = {
            output.step_key for output in upstream_outputs(step)
        } | step.get_execution_dependency_keys()
        step = fresh_step(step)
        steps: list[IExecutionStep] = [step, *(self.step(key) for key in sorted(upstream))]
        return ExecutionPlan(
            step_dict={each.handle: each for each in steps},
            executable_map={step.key: step.handle},
            resolvable_map={},
            step_handles_to_execute=[step.handle],
            known_state=state,
            artifacts_persisted=self.plan.artifacts_persisted,
            executor_name=self.plan.executor_name,
            repository_load_data=self.plan.repository_load_data,
        )


#: A process executes one step at a time, so its jobs need no lock.
_planned: OrderedDict[tuple[Any, ...], PlannedJob] = OrderedDict()


def planned_job(instance: DagsterInstance, run: DagsterRun) -> PlannedJob:
    """A run's job, loaded and planned once for all runs that configure and select it the same way."""
    assert run.job_code_origin, f"run {run.run_id} does not say where its code is"
    key = (
        run.job_code_origin.get_id(),
        # In the order of the launch, which user code sees.
        json.dumps(run.run_config, default=str),
        frozenset(run.resolved_op_selection or ()),
        run.asset_selection,
        run.asset_check_selection,
        run.execution_plan_snapshot_id if run.has_repository_load_data else None,
    )
    if key in _planned:
        _planned.move_to_end(key)
    else:
        _planned[key] = _plan(instance, run)
        while len(_planned) > KEPT_JOBS:
            _planned.popitem(last=False)
    return _planned[key]


def _plan(instance: DagsterInstance, run: DagsterRun) -> PlannedJob:
    assert run.job_code_origin, f"run {run.run_id} does not say where its code is"
    load_data = None
    if run.has_repository_load_data:
        assert run.execution_plan_snapshot_id
        load_data = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).repository_load_data
    job = (
        recon_job_from_origin(run.job_code_origin)
        .with_repository_load_data(load_data)
        .get_subset(
            op_selection=run.resolved_op_selection,
            asset_selection=run.asset_selection,
            asset_check_selection=run.asset_check_selection,
        )
    )
    plan = create_execution_plan(job, deepcopy(run.run_config), repository_load_data=load_data)
    return PlannedJob.of_plan(job, run, plan)
