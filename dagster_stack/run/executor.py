"""`celery_executor`: drives a run whose steps are executed by Celery workers.

The event log alone says how a step ended. A message starts a step or wakes the run; each may be lost.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from celery import Celery
from dagster import (
    DagsterEvent,
    Field,
    InitExecutorContext,
    IntSource,
    Noneable,
    StringSource,
    executor,
    in_process_executor,
    multiple_process_executor_requirements,
    multiprocess_executor,
)
from dagster._core.definitions.executor_definition import ExecutorRequirement
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import (
    StepDependencyConfig,
    get_step_dependency_config_field,
)
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.base import Executor
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.storage.tags import PRIORITY_TAG
from dagster_celery.executor import CELERY_CONFIG

from dagster_stack import tags
from dagster_stack.errors import SettingsError
from dagster_stack.messaging.address import address
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.run_connection import RunConnection
from dagster_stack.run.dispatch import Dispatch, report
from dagster_stack.run.eager import EagerDispatch, EagerLink
from dagster_stack.run.pool_slots import PoolSlots
from dagster_stack.run.resumed import ResumedRun
from dagster_stack.run.run_loop import RunLoop
from dagster_stack.settings import BROKER_VARIABLE, CeleryConfig, Settings
from dagster_stack.store import within

#: What a run's config says to Dagster's own default executor, which is this one here.
MULTIPROCESS, IN_PROCESS = "multiprocess", "in_process"
#: The stock executor's schema without its default backend, and what Dagster's own executors add.
CONFIG_SCHEMA = {
    **CELERY_CONFIG,
    "backend": Field(
        Noneable(StringSource),
        is_required=False,
        description="The URL of the Celery result backend. Steps need none. Default: what celery.yaml says.",
    ),
    "max_concurrent": Field(
        Noneable(IntSource),
        is_required=False,
        description="Steps of this run at once, wherever they run. Default: as many as there are workers.",
    ),
    "tag_concurrency_limits": get_tag_concurrency_limits_config(),
    "step_dependency_config": get_step_dependency_config_field(),
    MULTIPROCESS: Field(
        Noneable(multiprocess_executor.config_schema.config_type),
        is_required=False,
        description="As Dagster's default executor takes it: its limits and retries hold on the workers; start_method"
        " has no effect.",
    ),
    IN_PROCESS: Field(
        Noneable(in_process_executor.config_schema.config_type),
        is_required=False,
        description="As Dagster's default executor takes it: all steps in the process that drives the run, no workers.",
    ),
}


class Limits(NamedTuple):
    """A job's limits on when its steps may run."""

    #: Steps of a run; None: as many as there are workers.
    at_once: int | None
    by_tag: list[dict[str, Any]] | None
    step_dependency: StepDependencyConfig


class CeleryExecutor(Executor):
    """Drives a run whose steps workers execute: woken by messages instead of a clock, on one link to the broker."""

    def __init__(self, app: Celery, retries: RetryMode, limits: Limits, note: str = "") -> None:
        self._app = app
        self._retries = retries
        self._limits = limits
        #: What its runs say at their start.
        self._note = note

    @property
    def retries(self) -> RetryMode:
        return self._retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._limits.step_dependency

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        run, instance = plan_context.dagster_run, plan_context.instance
        if self._note and not plan_context.resume_from_failure:
            report(plan_context, self._note)
        warn_of_foreign_priorities(plan_context, execution_plan)
        warn_of_ignored_tags(plan_context, execution_plan)
        resumed = ResumedRun.of(instance, run.run_id) if plan_context.resume_from_failure else ResumedRun()
        is_eager = bool(self._app.conf.task_always_eager)
        retry_mode = self._retries.for_inner_plan()
        dispatch = (
            EagerDispatch(self._app, run, EagerLink(self._app, plan_context, execution_plan), retry_mode)
            if is_eager
            else Dispatch(self._app, run, RunConnection(self._app, run.run_id), retry_mode)
        )
        with ExitStack() as stack:
            stack.callback(dispatch.link.close)
            slots = stack.enter_context(PoolSlots(instance, run, resumed))
            active = stack.enter_context(
                ActiveExecution(
                    execution_plan,
                    retry_mode=self._retries,
                    # What is on its way already comes first: limits count it.
                    sort_key_fn=lambda step: (
                        -tags.step_priority(step.tags, run.tags)
                        - (tags.HIGHEST + 1) * resumed.has_sent(step.key)
                    ),
                    max_concurrent=1 if is_eager else self._limits.at_once,
                    tag_concurrency_limits=self._limits.by_tag,
                    instance_concurrency_context=slots,
                    step_dependency_config=self.step_dependency_config,
                )
            )
            yield from RunLoop(self, plan_context, active, dispatch, resumed).events()


class WithinStep(InProcessExecutor):
    """For an inner run: when such steps occupy all workers, none would be left for the inner run's steps."""

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        report(
            plan_context,
            "A step of another run executes this run. So its steps are executed in that step's process: on workers they could"
            " wait for the worker that waits for them. To have them on workers, launch the run instead.",
        )
        yield from super().execute(plan_context, execution_plan)


def warn_of_foreign_priorities(context: PlanOrchestrationContext, plan: ExecutionPlan) -> None:
    """Warn that Dagster's own priority tag has no effect on a Celery queue."""
    keys = [
        key
        for key in plan.step_keys_to_execute
        if PRIORITY_TAG in (step_tags := plan.get_step_by_key(key).tags or {})
        and tags.PRIORITY not in step_tags
    ]
    if keys:
        context.log.warning(
            f"These steps have the tag {PRIORITY_TAG}, which has no effect on the workers' queues; set"
            f" {tags.PRIORITY} too: {', '.join(keys)}"
        )


def warn_of_ignored_tags(context: PlanOrchestrationContext, plan: ExecutionPlan) -> None:
    """Warn of a time limit, or an isolation tag, that is ignored."""
    owners = {f'step "{key}"': plan.get_step_by_key(key).tags or {} for key in plan.step_keys_to_execute}
    for owner, found in {"the run": context.dagster_run.tags, **owners}.items():
        text = found.get(tags.TIMEOUT)
        if text is not None and tags.seconds(text) is None:
            context.log.warning(
                f"The tag {tags.TIMEOUT} of {owner} is {text!r}, which is no number of seconds above 0, such as"
                ' "600" or "0.5": it has no effect.'
            )
        value = found.get(tags.ISOLATION)
        if value is not None and value.strip().lower() not in tags.ISOLATIONS:
            context.log.warning(
                f"The tag {tags.ISOLATION} of {owner} is {value!r}, which is none of"
                f" {', '.join(tags.ISOLATIONS)}: it has no effect."
            )


def requirements(config: Mapping[str, Any]) -> Sequence[ExecutorRequirement]:
    return [] if IN_PROCESS in config else multiple_process_executor_requirements()


@executor(name="celery", config_schema=CONFIG_SCHEMA, requirements=requirements)
def celery_executor(context: InitExecutorContext) -> Executor:
    """Executes steps on Celery workers; what a job's config leaves open comes from `celery.yaml`."""
    config: Mapping[str, Any] = context.executor_config
    if IN_PROCESS in config:
        create = in_process_executor.executor_creation_fn
        assert create
        own = config[IN_PROCESS] or {"retries": config["retries"]}
        in_process: Executor = create(context._replace(executor_config=own))
        return in_process
    return made({**config, **(config.get(MULTIPROCESS) or {})})


def made(config: Mapping[str, Any], note: str = "") -> Executor:
    """The executor for what a run says to it; its log begins with the note."""
    retries = RetryMode.from_config(config["retries"])
    assert retries
    if os.environ.get(within.VARIABLE):
        return WithinStep(retries)
    limits = Limits(
        # 0 is Dagster's word for no limit of the job's own.
        config.get("max_concurrent") or None,
        config.get("tag_concurrency_limits"),
        StepDependencyConfig.from_config(config.get("step_dependency_config")),
    )
    return CeleryExecutor(run_app(config), retries, limits, note)


def run_app(config: Mapping[str, Any]) -> Celery:
    """The Celery app that a run sends its steps with; raises SettingsError when no broker is named."""
    settings = Settings.from_environment()
    defaults = CeleryConfig.load(settings.celery_yaml)
    config_source = {**defaults.config_source, **(config.get("config_source") or {})}
    if not (
        settings.embedded
        or config_source.get("task_always_eager")
        or config.get("broker")
        or defaults.broker
        or address()
    ):
        raise SettingsError(
            f"No broker: set {BROKER_VARIABLE} (compose.yaml does), `broker` in celery.yaml,"
            " or `execution: config: broker:` in the job's config."
        )
    for name in ("task_time_limit", "task_soft_time_limit"):
        value = config_source.get(name)
        if not (value is None or (isinstance(value, int | float) and value is not True and value > 0)):
            raise SettingsError(f"{name} must be a number of seconds above 0, it is {value!r}.")
    if config.get("broker"):
        # Celery lets this variable win over every configuration; a job's own broker must win over it.
        # It is safe to set: a run has this process to itself.
        os.environ[BROKER_VARIABLE] = config["broker"]
    return make_app(
        CeleryConfig(
            broker=config.get("broker") or defaults.broker,
            backend=config.get("backend") or defaults.backend,
            include=config.get("include") or defaults.include,
            config_source=config_source,
        ),
        settings,
    )
