"""Steps on their way through the broker: announced, sent, looked after while they wait, and called back."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from celery import Celery
from dagster import DagsterEvent, DagsterInstance, DagsterRun, MetadataValue
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster_shared.error import SerializableErrorInfo

from dagster_stack import tags
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging.app_factory import FOLDER_BROKER
from dagster_stack.messaging.delayed import delayed
from dagster_stack.messaging.messages import StepMessage, step_message, step_task_id
from dagster_stack.messaging.run_connection import Link
from dagster_stack.messaging.workers import taken, workers_of
from dagster_stack.run.termination import call_back
from dagster_stack.store.ledger import ledger_of
from dagster_stack.timing import MISSING_LOOK_SECS, MISSING_LOOKS, WAITING_LOOKS

logger = logging.getLogger(__name__)

#: Seconds between looks at the queues of steps that have not ended.
QUEUE_LOOK_SECS = 2
#: Steps that one question names: 60 bytes each, to every worker.
QUESTION_SIZE = 2000
#: Times that a step is sent again before it fails: workers may put its message aside, each time.
MOST_RESENDS = 3


@dataclass
class Sent:
    """A step that is on its way, or executed by some worker."""

    step: ExecutionStep
    message: StepMessage
    queue: str
    priority: int
    #: When it was announced, on the monotonic clock.
    since: float
    #: Which of the link's connections it was sent on; 0: by an earlier process, if that got so far.
    connection: int = 0
    #: Looks in a row at which no worker had it, and that it counts as lost since.
    missing: int = 0
    is_lost: bool = False
    #: Whether its message may be among those that wait in its queue.
    may_wait: bool = False
    #: Times that it was sent again.
    resent: int = 0


class Dispatch:
    """Sends the steps of one run as Celery tasks, and knows which are on their way."""

    def __init__(self, app: Celery, run: DagsterRun, link: Link, retry_mode: RetryMode) -> None:
        self._app = app
        self._run = run
        self.link = link
        #: Of a single step, which its message names.
        self._retry_mode = retry_mode
        self._default_queue = str(app.conf.task_default_queue)
        self._embedded = str(app.conf.broker_url).startswith(FOLDER_BROKER)
        #: Steps that are sent or about to be, by key.
        self.in_flight: dict[str, Sent] = {}
        self._outbox: list[Sent] = []
        self._broker_is_away = False
        #: Queues without a consumer, and when to ask again whether their workers are only busy.
        self._unconsumed: dict[str, float] = {}
        self._next_queue_look = time.monotonic() + QUEUE_LOOK_SECS
        self._next_missing_look = time.monotonic() + MISSING_LOOK_SECS

    def announce(
        self, context: PlanOrchestrationContext, steps: Sequence[ExecutionStep], known: KnownExecutionState
    ) -> None:
        """Say in the run's log that steps are sent; `send` hands what is announced to the broker."""
        for step in steps:
            sent = self.track(step, known)
            self._outbox.append(sent)
            DagsterEvent.step_worker_starting(
                context.for_step(step),
                f'Sending step "{step.key}" to queue "{sent.queue}".',
                metadata={
                    "queue": MetadataValue.text(sent.queue),
                    "priority": MetadataValue.int(sent.priority),
                    "attempt": MetadataValue.int(sent.message.attempt),
                    "task": MetadataValue.text(sent.message.task_id),
                },
            )

    def track(self, step: ExecutionStep, known: KnownExecutionState) -> Sent:
        """Count a step as on its way from now on."""
        sent = Sent(
            step=step,
            message=step_message(self._run, step, known, self._retry_mode),
            queue=step.tags.get(tags.QUEUE, self._default_queue),
            priority=tags.step_priority(step.tags, self._run.tags),
            since=time.monotonic(),
        )
        self.in_flight[step.key] = sent
        return sent

    def go_on_with(self, step_key: str) -> None:
        """Wait for a step that an earlier process of the run sent: its worker ends it, or `look_after` finds it lost."""

    def send(self, context: PlanOrchestrationContext) -> None:
        """Send what is announced. While the broker is away it waits here, and the run's log says so."""
        try:
            while self._outbox:
                sent = self._outbox[0]
                self.link.send(sent.message, self._run.job_name, sent.queue, sent.priority)
                sent.connection = self.link.connections
                del self._outbox[0]
        except BrokerUnreachable as error:
            if not self._broker_is_away:
                self._broker_is_away = True
                report(context, f"Waiting for the broker: {len(self._outbox)} steps are to be sent. {error}")
            return
        if self._broker_is_away:
            self._broker_is_away = False
            report(context, "The broker is back: all steps that were ready are sent.")

    def look_after(self, context: PlanOrchestrationContext) -> bool:
        """Report queues without a consumer and send lost steps again; returns whether any step seems lost so far."""
        now = time.monotonic()
        try:
            if now >= self._next_queue_look:
                self._next_queue_look = now + QUEUE_LOOK_SECS
                self._look_at_queues(context)
            if now >= self._next_missing_look:
                self._next_missing_look = now + MISSING_LOOK_SECS
                return self._look_for_missing(context)
        except BrokerUnreachable:
            # Unknown is not lost; `send` tells of it when there is something to send.
            return False
        return False

    def call_back(self, instance: DagsterInstance) -> list[str]:
        """End the run's steps; returns the keys of those that had to be killed."""
        return call_back(self._app, instance, self._run.run_id, self._called_back())

    def _called_back(self) -> list[str]:
        self._outbox.clear()
        return [sent.message.task_id for sent in self.in_flight.values()]

    # --- looking after -------------------------------------------------------------------------------

    def _look_at_queues(self, context: PlanOrchestrationContext) -> None:
        now = time.monotonic()
        for queue in {sent.queue for sent in self.in_flight.values()} | self._unconsumed.keys():
            state = self.link.queue_state(queue)
            if state.consumers and queue in self._unconsumed:
                del self._unconsumed[queue]
                report(context, f'A worker consumes queue "{queue}" now.')
            elif state.ready and not state.consumers and now >= self._unconsumed.get(queue, 0):
                self._tell_of_unconsumed(context, queue, state.ready, now)

    def _tell_of_unconsumed(
        self, context: PlanOrchestrationContext, queue: str, ready: int, now: float
    ) -> None:
        # A worker that lost the broker while all its processes work is back, and subscribes when one is free.
        busy = [] if self._embedded else workers_of(self._app, queue)
        was_told = queue in self._unconsumed
        self._unconsumed[queue] = now + MISSING_LOOK_SECS if busy else math.inf
        steps = f'Steps wait in queue "{queue}" ({ready})'
        if not busy:
            report(context, f"{steps} and no worker consumes it. Start one: {self._worker_command(queue)}")
        elif not was_told:
            report(context, f"{steps} until a worker is free: {', '.join(sorted(busy))} work on others.")

    def _worker_command(self, queue: str) -> str:
        """How somebody starts a worker for a queue."""
        if self._embedded:
            return f"DEV_QUEUES={self._default_queue},{queue} make dev"
        return (
            f"docker compose run --detach worker celery -A dagster_stack.app worker -n {queue}@%h -Q {queue}"
        )

    def _look_for_missing(self, context: PlanOrchestrationContext) -> bool:
        due = time.monotonic() - MISSING_LOOK_SECS
        waiting = {sent.message.task_id for sent in self._outbox}
        silent = [
            sent
            for sent in self.in_flight.values()
            if sent.since <= due and sent.message.task_id not in waiting
        ]
        queues = {sent.queue for sent in silent}
        ready = {queue for queue in queues if self.link.queue_state(queue).ready}
        delaying = {queue for queue in queues if self.link.queue_state(delayed(queue)).ready}
        # A confirmed message may simply wait, as thousands do; but a broker that was away may have lost its disk.
        suspects = [
            sent for sent in silent if sent.queue not in ready or sent.connection != self.link.connections
        ]
        if not suspects:
            return False
        for sent in self._without_worker(context, suspects):
            may_wait = sent.queue in ready
            # Looks count in a row, and of the same kind.
            sent.missing = sent.missing + 1 if may_wait == sent.may_wait else 1
            sent.may_wait = may_wait
            looks = WAITING_LOOKS if sent.queue in ready | delaying else MISSING_LOOKS
            sent.is_lost = sent.missing >= looks
        return any(sent.is_lost for sent in suspects)

    def send_missing_again(self, context: PlanOrchestrationContext) -> None:
        """Send lost steps again. If one has ended meanwhile, its worker skips it."""
        lost = [sent for sent in self.in_flight.values() if sent.is_lost]
        unsure = [sent for sent in lost if sent.may_wait]
        if unsure:
            report(
                context,
                f"Steps that no worker has had for {WAITING_LOOKS * MISSING_LOOK_SECS} s: {len(unsure)}. Whether their"
                " messages wait is not known, since the runner or the broker was restarted. They are sent once more: of"
                " two messages one is skipped.",
            )
        for sent in lost:
            sent.missing, sent.is_lost = 0, False
            if sent.may_wait:
                self._outbox.append(sent)
                continue
            sent.resent += 1
            key = sent.message.step_key
            if sent.resent > MOST_RESENDS:
                DagsterEvent.step_failure_event(
                    context.for_step(sent.step),
                    StepFailureData(
                        SerializableErrorInfo(
                            f'Its message was lost {sent.resent} times in queue "{sent.queue}". `make dead-letters`'
                            " shows whether a worker put it aside, and why.",
                            [],
                            None,
                        ),
                        user_failure_data=None,
                    ),
                )
                continue
            report(
                context,
                f'Step "{key}" is neither in queue "{sent.queue}" nor with any worker:'
                " its message was lost, it is sent again.",
            )
            self._outbox.append(sent)
        self.send(context)

    def _without_worker(self, context: PlanOrchestrationContext, suspects: list[Sent]) -> list[Sent]:
        """Those of the first suspects that no process executes, and no worker has."""
        active = ledger_of(context.instance).active([context.run_id])
        executed = {step_task_id(work.run_id, work.step_key, work.attempt) for work in active}
        silent = [sent for sent in suspects if sent.message.task_id not in executed][:QUESTION_SIZE]
        # A process that holds Python's global lock, or is cut off from Postgres alone, gives no sign of life; the
        # main process of its worker answers.
        held = taken(self._app, [sent.message.task_id for sent in silent]) if silent else set()
        for sent in suspects:
            if sent.message.task_id in executed | held:
                sent.missing, sent.is_lost = 0, False
        return [sent for sent in silent if sent.message.task_id not in held]


def report(context: PlanOrchestrationContext, message: str) -> None:
    """A line in the run's log."""
    DagsterEvent.engine_event(context, message, EngineEventData())
