"""Eager runs (`task_always_eager`): the process that drives the run executes its steps, one after the other.

Nothing goes through a broker. Each execution is leased and counted as on a worker, while the run's own lease, when
its process has one, decides what counts.
"""

import logging
import os
import signal
import socket
import time
from threading import Lock

from celery import Celery
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan

from dagster_stack.errors import AlreadyDone, AlreadyHeld
from dagster_stack.logs.context import bound
from dagster_stack.messaging.messages import StepMessage
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.run.dispatch import Dispatch
from dagster_stack.step.plan_cache import PlannedJob
from dagster_stack.step.step_execution import StepExecution
from dagster_stack.store.ledger import ledger_of
from dagster_stack.timing import DELAY_SECS
from dagster_stack.worker.shutdown import is_leaving

logger = logging.getLogger(__name__)

#: Held while a step is executed: a runner that stops hands its run over between two steps.
EXECUTING = Lock()


class EagerLink:
    """In place of a run's link to the broker: executes what it is sent while the run waits."""

    def __init__(self, app: Celery, context: PlanOrchestrationContext, plan: ExecutionPlan) -> None:
        self._limits = (app.conf.task_time_limit, app.conf.task_soft_time_limit)
        self._instance = context.instance
        self._planned = PlannedJob.of_plan(context.reconstructable_job, context.dagster_run, plan)
        self._waiting: list[StepMessage] = []
        self._pause_ends = 0.0
        #: As if it had been opened once and never broken.
        self.connections = 1

    def send(self, message: StepMessage, job: str, queue: str, priority: int) -> None:
        self._waiting.append(message)

    def wait(self, timeout: float) -> bool:
        """Execute the step that waits, however long it takes; without one, wait. Whether there may be news."""
        if self._waiting and time.monotonic() >= self._pause_ends and self._execute(self._waiting[0]):
            return True
        time.sleep(timeout)
        return False

    def queue_state(self, queue: str) -> QueueState:
        return QueueState(len(self._waiting), 1)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def close(self) -> None:
        """Nothing is open."""

    def _execute(self, message: StepMessage) -> bool:
        execution = StepExecution(
            message,
            self._holder(),
            lambda: None,
            within=(self._instance, self._planned),
            celery_limits=self._limits,
        )
        with EXECUTING:
            if is_leaving():
                return False
            try:
                with bound(run=message.run_id, step=message.step_key, task=message.task_id):
                    execution.run()
            except AlreadyDone as done:
                logger.info("%s is skipped: %s", message.work, done, extra={"action": "message.skipped"})
            except AlreadyHeld:
                # The process that drove the run before this one may be alive.
                self._pause_ends = time.monotonic() + DELAY_SECS
                return False
        self._waiting.remove(message)
        if execution.was_interrupted:
            # An interrupt of the step's process is meant for the run.
            signal.raise_signal(signal.SIGINT)
        return True

    def _holder(self) -> str:
        lease = ledger_of(self._instance).lease
        return lease.holder if lease else f"{socket.gethostname()} (process {os.getpid()})"


class EagerDispatch(Dispatch):
    """Sends the steps of an eager run to itself: no other process has them."""

    link: EagerLink

    def look_after(self, context: PlanOrchestrationContext) -> bool:
        """No message can be lost."""
        return False

    def go_on_with(self, step_key: str) -> None:
        """An earlier process of the run may have begun it: now this one executes it."""
        self._outbox.append(self.in_flight[step_key])

    def _called_back(self) -> list[str]:
        super()._called_back()
        self.link.clear()
        return []
