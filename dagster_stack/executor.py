"""`celery_executor`: drives a run whose steps are executed by Celery workers.

The event log alone says how a step ended. A message starts a step or wakes the run; each may be lost.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import Celery
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    Field,
    InitExecutorContext,
    IntSource,
    Noneable,
    StringSource,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import (
    StepDependencyConfig,
    get_step_dependency_config_field,
)
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.step_delegating import StepDelegatingExecutor, StepHandlerContext
from dagster._core.storage.tags import PRIORITY_TAG
from dagster_celery.executor import CELERY_CONFIG

from dagster_stack import tags
from dagster_stack.app_factory import make_app
from dagster_stack.broker import BrokerLink
from dagster_stack.errors import BrokerUnreachable, SettingsError
from dagster_stack.event_tail import EventTail
from dagster_stack.handler import CeleryStepHandler, report
from dagster_stack.messages import step_task_id
from dagster_stack.postgres import PooledEventLogStorage
from dagster_stack.settings import BROKER_VARIABLE, CeleryConfig, Settings

#: Seconds after which the event log is read without a wake-up: what a lost one costs.
POLL_SECS = 5
#: Seconds between two looks for an interrupt, a retry that is due, or a slot of a pool.
TICK_SECS = 0.5
#: Seconds between two readings of the event log at least: many ends that come at once are read at once.
READ_GAP_SECS = 0.03
#: Steps that are announced in one write, then sent.
LAUNCH_SIZE = 50

#: Events that are read back: what decides how the run goes on, and what the caller of `execute_job` looks for.
#: The rest, half of all, tells people how a step was executed; reading it would take as long as all the rest.
TOLD_EVENTS = set(DagsterEventType) - {
    DagsterEventType.ENGINE_EVENT,
    DagsterEventType.LOGS_CAPTURED,
    DagsterEventType.RESOURCE_INIT_STARTED,
    DagsterEventType.RESOURCE_INIT_SUCCESS,
    DagsterEventType.STEP_WORKER_STARTED,
    DagsterEventType.STEP_WORKER_STARTING,
}

#: The stock executor's schema without its default backend, and what Dagster's multiprocess executor adds.
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
}


class CeleryExecutor(StepDelegatingExecutor):
    """Dagster's step-delegating executor, woken by messages instead of a clock, on one link to the broker."""

    def __init__(self, app: Celery, **options: Any) -> None:
        # Dagster's own loop wants a handler at once; here each run makes one, on its own link.
        super().__init__(step_handler=None, **options)  # type: ignore[arg-type]
        self._app = app

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        run = plan_context.dagster_run
        warn_of_foreign_priorities(plan_context, execution_plan)
        link = BrokerLink(self._app, run.run_id)
        with ExitStack() as stack:
            stack.callback(link.close)
            slots = stack.enter_context(InstanceConcurrencyContext(plan_context.instance, run))
            active = stack.enter_context(
                ActiveExecution(
                    execution_plan,
                    retry_mode=self.retries,
                    sort_key_fn=lambda step: -tags.step_priority(step.tags, run.tags),
                    max_concurrent=self._max_concurrent,
                    tag_concurrency_limits=self._tag_concurrency_limits,
                    instance_concurrency_context=slots,
                    step_dependency_config=self.step_dependency_config,
                )
            )
            handler = CeleryStepHandler(self._app, run, link)
            yield from Drive(self, plan_context, active, handler, link).events()

    def handler_context(
        self, context: PlanOrchestrationContext, steps: Sequence[ExecutionStep], active: ActiveExecution
    ) -> StepHandlerContext:
        return self._get_step_handler_context(context, steps, active)


class Drive:
    """One run being driven: reads what happened, says what follows, sends what is ready, waits."""

    def __init__(
        self,
        executor: CeleryExecutor,
        context: PlanOrchestrationContext,
        active: ActiveExecution,
        handler: CeleryStepHandler,
        link: BrokerLink,
    ) -> None:
        self._executor = executor
        self._context = context
        self._active = active
        self._handler = handler
        self._link = link
        self._tail = EventTail(context.instance, context.run_id, TOLD_EVENTS)
        #: Steps that are sent or about to be, by key.
        self._in_flight: dict[str, ExecutionStep] = {}
        #: Outputs of the attempt in flight that were counted, by step: a second report of one is not.
        self._outputs: defaultdict[str, set[StepOutputHandle]] = defaultdict(set)
        #: Attempts, by step and number of attempts before, whose resources failed.
        self._failed_resources: set[tuple[str, int]] = set()
        self._read_at = 0.0
        self._poll_at = 0.0

    def events(self) -> Iterator[DagsterEvent]:
        """Drive the run to its end; yields its events once they stand in the log."""
        if self._context.resume_from_failure:
            yield from self._resume()
        try:
            self._advance()
            while not self._active.is_complete:
                if self._active.check_for_interrupts():
                    self._interrupt()
                    return
                yield from self._news()
                self._advance()
                yield from self._look_after()
        except Exception:
            # Whatever went wrong here ends the run: its steps must not go on without it.
            self._handler.revoke_all()
            raise

    # --- what happened ---------------------------------------------------------------------------------

    def _news(self) -> Iterator[DagsterEvent]:
        """Wait until something may be due; what the event log has by then."""
        woken = self._wait()
        now = time.monotonic()
        if now >= self._poll_at:
            # Also while wake-ups come all the time: an end that became visible late must not wait for a pause.
            self._poll_at = now + POLL_SECS
            news = self._tail.look_back()
        elif woken:
            news = self._tail.read()
        else:
            return
        self._read_at = now
        yield from self._take(news)

    def _take(self, events: Iterator[DagsterEvent]) -> Iterator[DagsterEvent]:
        for event in events:
            self._account(event)
            yield event

    def _account(self, event: DagsterEvent) -> None:
        """Tell Dagster's bookkeeping, which expects each thing once, what it does not know yet."""
        key = event.step_key
        if key is None:
            return
        if key not in self._in_flight:
            if event.is_step_up_for_retry:
                # An attempt that was executed twice. Workers tell by the number of these events which one is due.
                self._active.retry_state.mark_attempt(key)
            return
        if event.is_successful_output:
            output = event.step_output_data.step_output_handle
            if output not in self._outputs[key]:
                self._outputs[key].add(output)
                self._active.handle_event(event)
        elif event.is_resource_init_failure:
            self._fail(key, event)
        elif event.is_step_success or event.is_step_failure or event.is_step_up_for_retry:
            del self._in_flight[key]
            self._outputs.pop(key, None)
            self._handler.forget(key)
            self._active.handle_event(event)
            if not event.is_step_up_for_retry:
                self._active.verify_complete(self._context, key)

    def _fail(self, key: str, event: DagsterEvent) -> None:
        """A step whose resources failed reports no end of its own: write it, and read it like any other."""
        attempt = (key, self._active.retry_state.get_attempt_count(key))
        if attempt in self._failed_resources:
            return
        self._failed_resources.add(attempt)
        self._active.handle_event(event)
        error = event.engine_event_data.error
        assert error
        self._executor.log_failure_or_retry_event_after_error(
            self._context.for_step(self._in_flight[key]), error, self._active.get_known_state()
        )
        self._poll_at = 0

    # --- what follows ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        # Skipped steps, and those whose inputs failed; they may make others ready.
        for _ in self._active.plan_events_iterator(self._context):
            pass
        for _ in self._active.concurrency_event_iterator(self._context):
            pass
        ready = self._active.get_steps_to_execute()
        for first in range(0, len(ready), LAUNCH_SIZE):
            self._launch(ready[first : first + LAUNCH_SIZE])
        self._handler.send(self._context)

    def _launch(self, steps: Sequence[ExecutionStep]) -> None:
        with batching(self._context.instance):
            for step in steps:
                self._in_flight[step.key] = step
            for _ in self._handler.launch_step(
                self._executor.handler_context(self._context, steps, self._active)
            ):
                pass
        self._handler.send(self._context)

    def _look_after(self) -> Iterator[DagsterEvent]:
        if self._handler.look_after(self._context):
            # Before anything counts as lost: the whole log, in case an event was missed.
            yield from self._take(self._tail.reread())
            self._handler.send_missing_again(self._context)

    # --- waiting ---------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Wait for a wake-up, or until something else may be due; whether one came."""
        now = time.monotonic()
        time.sleep(max(0.0, self._read_at + READ_GAP_SECS - now))
        timeout = max(0.0, min(TICK_SECS, self._poll_at - now))
        try:
            return self._link.wait(timeout)
        except BrokerUnreachable:
            time.sleep(timeout)
            return False

    def _interrupt(self) -> None:
        self._active.mark_interrupted()
        if self._context.instance.run_will_resume(self._context.run_id):
            report(self._context, "This run's process was told to stop; the run will be resumed.")
            return
        keys = list(self._in_flight)
        DagsterEvent.engine_event(
            self._context,
            f"Told to stop: {len(keys)} steps are called back from queues and workers.",
            EngineEventData.interrupted(keys),
        )
        self._handler.revoke_all()

    def _resume(self) -> Iterator[DagsterEvent]:
        """Go on where an earlier process of this run stopped: what it sent is waited for, not sent twice."""
        report(self._context, "Going on with this run where its earlier process stopped.")
        prior = list(self._tail.read())
        announced = EventTail(
            self._context.instance, self._context.run_id, {DagsterEventType.STEP_WORKER_STARTING}
        )
        sent = {event.engine_event_data.metadata["task"].value for event in announced.read()}
        self._track(self._active.get_steps_to_execute(), sent)
        for event in prior:
            if event.is_step_up_for_retry:
                # Whatever pause it asked for: what followed it may be in the log already.
                self._account(event._replace(event_specific_data=StepRetryData(event.step_retry_data.error)))
            else:
                self._account(event)
            self._track(self._active.get_steps_to_execute(), sent)
            yield event

    def _track(self, steps: Sequence[ExecutionStep], sent: set[Any]) -> None:
        for step in steps:
            attempt = self._active.retry_state.get_attempt_count(step.key) + 1
            if step_task_id(self._context.run_id, step.key, attempt) in sent:
                self._in_flight[step.key] = step
                self._handler.track(self._executor.handler_context(self._context, [step], self._active))
            else:
                self._launch([step])


@contextmanager
def batching(instance: DagsterInstance) -> Iterator[None]:
    """Write the events of this process together, where the storage can."""
    storage = instance.event_log_storage
    if isinstance(storage, PooledEventLogStorage):
        with storage.batching():
            yield
    else:
        yield


def warn_of_foreign_priorities(context: PlanOrchestrationContext, plan: ExecutionPlan) -> None:
    """Dagster's own priority tag says nothing to a Celery queue: tell whoever set it."""
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


@executor(name="celery", config_schema=CONFIG_SCHEMA, requirements=multiple_process_executor_requirements())
def celery_executor(context: InitExecutorContext) -> CeleryExecutor:
    """Executes steps on Celery workers; what a job's config leaves open comes from `celery.yaml`."""
    config: Mapping[str, Any] = context.executor_config
    return CeleryExecutor(
        run_app(config),
        retries=RetryMode.from_config(config["retries"]),
        max_concurrent=config.get("max_concurrent"),
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        step_dependency_config=StepDependencyConfig.from_config(config.get("step_dependency_config")),
    )


def run_app(config: Mapping[str, Any]) -> Celery:
    """The Celery app that a run sends its steps with; raises SettingsError when no broker is named."""
    settings = Settings.from_environment()
    defaults = CeleryConfig.load(settings.celery_yaml)
    if not (settings.embedded or config.get("broker") or defaults.broker or os.environ.get(BROKER_VARIABLE)):
        raise SettingsError(
            f"No broker: set {BROKER_VARIABLE} (compose.yaml does), `broker` in celery.yaml,"
            " or `execution: config: broker:` in the job's config."
        )
    if config.get("broker"):
        # Celery lets this variable win over every configuration; a job's own broker must win over it.
        # It is safe to set: a run has this process to itself.
        os.environ[BROKER_VARIABLE] = config["broker"]
    return make_app(
        CeleryConfig(
            broker=config.get("broker") or defaults.broker,
            backend=config.get("backend") or defaults.backend,
            include=config.get("include") or defaults.include,
            config_source={**defaults.config_source, **(config.get("config_source") or {})},
        ),
        settings,
    )
