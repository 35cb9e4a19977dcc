"""A run with the dispatch of its steps, and a broker that this talks to."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

from dagster import DagsterInstance, DagsterRun, reconstructable
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanOrchestrationContextManager
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from kombu.exceptions import OperationalError

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging.messages import StepMessage, step_task_id
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.messaging.run_connection import RunConnection
from dagster_stack.run.dispatch import (
    Dispatch,
)
from tests.unit.runs_by_hand import said, started_run

#: What the app's control raises without a broker, and on a connection that a broker closed when it restarted.
CONTROL_ERRORS = [OperationalError("refused"), ConnectionResetError(104, "Connection reset by peer")]


class Broker:
    """A link and an app in one, as far as dispatch uses them, with RabbitMQ's behaviour.

    A message is kept in its queue until a worker takes it, and counts as ready as long; a queue that does not
    exist is empty and has no consumer. `inspect().query_task` names the tasks that workers have, waiting or
    running; when no worker answers in time it is None. While the broker is away every call raises: the link's
    BrokerUnreachable, the app's control what kombu or a socket raises (OperationalError after 6 s without a
    server, ConnectionResetError on a connection of its pool that the broker has closed).
    """

    def __init__(self) -> None:
        self.away = False
        self.connections = 1
        #: The app has connections of its own: they may be dead while the link stands.
        self.control_error: Exception | None = None
        self.queues: dict[str, list[StepMessage]] = {}
        self.consumers: dict[str, int] = {}
        #: Workers that answer, by their queue, also without a subscription; and how often they were asked.
        self.workers: dict[str, list[str]] = {}
        self.asked = 0
        self.with_workers: set[str] = set()
        self.workers_answer = True
        self.sent: list[tuple[str, str, int]] = []
        self.revoked: list[tuple[list[str], dict[str, Any]]] = []
        self.questions: list[tuple[str, ...]] = []
        # The app's side of it.
        self.conf = self
        self.control = self
        self.task_default_queue = "dagster"
        self.broker_url = "amqp://rabbitmq//"

    def _reached(self) -> None:
        if self.away:
            raise BrokerUnreachable("The broker does not answer: refused")

    def send(self, message: StepMessage, job: str, queue: str, priority: int) -> None:
        self._reached()
        self.sent.append((message.step_key, queue, priority))
        self.queues.setdefault(queue, []).append(message)

    def queue_state(self, queue: str) -> QueueState:
        self._reached()
        return QueueState(len(self.queues.get(queue, ())), self.consumers.get(queue, 0))

    def workers_of(self, queue: str) -> list[str]:
        self._reached()
        self.asked += 1
        return self.workers.get(queue, [])

    def revoke(self, ids: list[str], **options: Any) -> None:
        self._controlled()
        self.revoked.append((ids, options))

    def inspect(self, timeout: float) -> "Broker":
        return self

    def _controlled(self) -> None:
        error = OperationalError("[Errno 111] Connection refused") if self.away else self.control_error
        if error:
            raise error

    def query_task(self, *ids: str) -> dict[str, dict[str, list[Any]]] | None:
        self._controlled()
        self.questions.append(ids)
        if not self.workers_answer:
            return None
        return {
            "worker@a": {},
            "worker@b": {task: ["active", {}] for task in ids if task in self.with_workers},
        }

    def take(self, queue: str = "dagster") -> str:
        """A worker takes the first message of a queue; returns its task id."""
        task = self.queues[queue].pop(0).task_id
        self.with_workers.add(task)
        return task

    def lose(self, queue: str = "dagster") -> None:
        """A message is gone and nobody has it: a broker that lost its disk, a queue that was purged."""
        self.queues[queue].clear()

    @property
    def keys(self) -> list[str]:
        return [key for key, _, _ in self.sent]


class Driven:
    """A run with its dispatch, as its executor has them."""

    def __init__(self, instance: DagsterInstance, broker: Broker, job: Any, stack: ExitStack) -> None:
        self.instance = instance
        self.broker = broker
        self.run: DagsterRun = started_run(instance, job)
        self.plan: ExecutionPlan = create_execution_plan(job)
        manager = stack.enter_context(_orchestration(instance, self.run, job, self.plan))
        self.context: PlanOrchestrationContext = manager
        self.dispatch = Dispatch(cast(Any, broker), self.run, cast(RunConnection, broker), RetryMode.DEFERRED)

    def launch(self, *keys: str, attempts: int = 1) -> None:
        known = KnownExecutionState(dict.fromkeys(keys, attempts - 1) if attempts > 1 else {})
        self.dispatch.announce(self.context, [self._step(key) for key in keys], known)

    def _step(self, key: str) -> ExecutionStep:
        return cast(ExecutionStep, self.plan.get_step_by_key(key))

    def send(self, *keys: str) -> None:
        self.launch(*keys)
        self.dispatch.send(self.context)

    def track(self, *keys: str) -> None:
        """Steps that an earlier process of the run has announced."""
        for key in keys:
            self.dispatch.track(self._step(key), KnownExecutionState({}))

    def look(self) -> bool:
        return self.dispatch.look_after(self.context)

    @property
    def reported(self) -> list[str]:
        return said(self.instance, self.run.run_id)

    def task(self, key: str, attempt: int = 1) -> str:
        return step_task_id(self.run.run_id, key, attempt)


class _orchestration:  # noqa: N801
    """The context in which a run's process drives it, without the run's own start and end."""

    def __init__(self, instance: DagsterInstance, run: DagsterRun, job: Any, plan: ExecutionPlan) -> None:
        self._manager = PlanOrchestrationContextManager(
            context_event_generator=_context_events,
            job=reconstructable(job),
            execution_plan=plan,
            run_config=run.run_config,
            dagster_run=run,
            instance=instance,
            raise_on_error=False,
            executor_defs=None,
            output_capture=None,
        )

    def __enter__(self) -> PlanOrchestrationContext:
        for _ in self._manager.prepare_context():
            pass
        return self._manager.get_context()

    def __exit__(self, *_: object) -> None:
        for _event in self._manager.shutdown_context():
            pass


def _context_events(*arguments: Any, **named: Any) -> Iterator[Any]:
    from dagster._core.execution.context_creation_job import orchestration_context_event_generator

    yield from orchestration_context_event_generator(*arguments, **named)
