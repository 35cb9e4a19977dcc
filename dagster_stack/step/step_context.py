"""The context that Dagster executes a step in, made without loading, planning and validating its job again."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from dagster import DagsterInstance, DagsterRun, JobDefinition, RepositoryDefinition
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, StepExecutionContext
from dagster._core.execution.context_creation_job import (
    ContextCreationData,
    ExecutionContextManager,
    create_execution_data,
    create_log_manager,
    create_plan_data,
)
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.resources_init import (
    get_required_resource_keys_to_init,
    resource_initialization_manager,
)
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig

from dagster_stack.objects import default_io_manager
from dagster_stack.step.fresh import fresh_config, kept_definitions
from dagster_stack.step.plan_cache import PlannedJob
from dagster_stack.step.time_limit import Deadline


class PlannedContext(ContextCreationData):
    """What a step's context is made of, without loading and validating the job again."""

    planned: PlannedJob

    @property
    def job_def(self) -> JobDefinition:
        return self.planned.definition

    @property
    def repository_def(self) -> RepositoryDefinition | None:
        return self.planned.repository


class StepsContext(PlanExecutionContext):
    """Dagster's, but the step's deadline, if it has one, launches the step."""

    deadline: Deadline | None = None

    def for_step(
        self, step: ExecutionStep, known_state: KnownExecutionState | None = None
    ) -> StepExecutionContext:
        context = super().for_step(step, known_state)
        if self.deadline:
            self.deadline.launcher = context.step_launcher
            context._step_launcher = self.deadline  # type: ignore[assignment]
        return context


class StepContextManager(ExecutionContextManager[PlanExecutionContext]):
    """Sets up and tears down what one step needs; resources live as long as the step, as in every executor."""

    @property
    def context_type(self) -> type[PlanExecutionContext]:
        return PlanExecutionContext


def _context_events(
    planned: PlannedJob,
    plan: ExecutionPlan,
    run: DagsterRun,
    instance: DagsterInstance,
    retry_mode: RetryMode,
    *,
    deadline: Deadline | None,
) -> Iterator[DagsterEvent | PlanExecutionContext]:
    """Dagster's `execution_context_event_generator` for a job that is already loaded."""
    config = fresh_config(planned.config, run.run_config)
    data = PlannedContext(
        job=planned.job,
        resolved_run_config=config,
        dagster_run=run,
        executor_def=planned.definition.executor_def,
        instance=instance,
        resource_keys_to_init=get_required_resource_keys_to_init(plan, planned.definition),
        execution_plan=plan,
    )
    data.planned = planned
    log_manager = create_log_manager(data)
    event_loop = asyncio.new_event_loop()
    try:
        resources = resource_initialization_manager(
            resource_defs=default_io_manager.quick(planned.definition.get_required_resource_defs()),
            resource_configs=config.resources,
            log_manager=log_manager,
            execution_plan=plan,
            dagster_run=run,
            resource_keys_to_init=data.resource_keys_to_init,
            instance=instance,
            emit_persistent_events=True,
            event_loop=event_loop,
        )
        yield from resources.generate_setup_events()
        context = StepsContext(
            plan_data=create_plan_data(data, False, retry_mode, StepDependencyConfig.default()),
            execution_data=create_execution_data(data, resources.get_object()),
            log_manager=log_manager,
            output_capture=None,
            event_loop=event_loop,
        )
        context.deadline = deadline
        yield context
        yield from resources.generate_teardown_events()
    finally:
        # Inside a loop that already runs this is refused, and the step's own loop has nothing to end.
        with suppress(RuntimeError):
            event_loop.run_until_complete(event_loop.shutdown_asyncgens())
        event_loop.close()


def step_events(
    planned: PlannedJob,
    plan: ExecutionPlan,
    run: DagsterRun,
    instance: DagsterInstance,
    retry_mode: RetryMode,
    *,
    deadline: Deadline | None = None,
) -> Iterator[DagsterEvent]:
    """Execute the one step of `plan`; its events are stored as they come, and yielded."""
    (key,) = plan.step_keys_to_execute
    step = plan.get_step_by_key(key)
    assert isinstance(step, ExecutionStep)
    with kept_definitions(planned.definition, step):
        yield from ExecuteRunWithPlanIterable(
            execution_plan=plan,
            iterator=inner_plan_execution_iterator,
            execution_context_manager=StepContextManager(
                _context_events(planned, plan, run, instance, retry_mode, deadline=deadline)
            ),
        )
