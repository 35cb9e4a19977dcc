"""Runs that are driven in a test, and the workers behind them.

Steps are executed in this process, by the code of a worker, while the run waits; the clock moves only by waiting.
"""

import pickle
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    MetadataValue,
    reconstructable,
)
from dagster._core.events import EngineEventData
from dagster._core.execution.api import execute_run_iterator

from dagster_stack.errors import BrokerUnreachable, Fenced
from dagster_stack.messaging.messages import StepMessage, step_task_id
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.step.step_execution import StepExecution
from dagster_stack.store.event_log import ENDS
from tests.unit.clock import Clock
from tests.unit.runs_by_hand import events, said, started_run

HOLDER = "worker@here"


class Workers:
    """A run's link to the broker and the one worker behind it, which works while the run waits.

    Like RabbitMQ's queues with priorities it gives out the highest first, and among equals the first sent. A
    step is executed by the code of a real worker, in this process, and `wait` then tells of its wake-up at
    once; without one `wait` takes its whole time. A broker that is away raises BrokerUnreachable.
    """

    def __init__(self, instance: DagsterInstance, clock: Clock) -> None:
        self._instance = instance
        self._clock = clock
        #: What waits: priority, message.
        self.queue: list[tuple[int, StepMessage]] = []
        #: All that was ever sent: step, attempt.
        self.sent: list[tuple[str, int]] = []
        self.most_at_once = 0
        self.reads = 0
        self.closed = False
        self.connections = 1
        #: The task ids of each call to revoke, and of those that sent SIGKILL.
        self.revoked: list[list[str]] = []
        self.killed: list[list[str]] = []
        # What may be different from a good day:
        self.wakes_run = True
        self.away_until = 0.0
        #: Seconds that a step takes, by its key; none takes any otherwise.
        self.durations: dict[str, float] = {}
        #: How often a step's message is lost on its way.
        self.loses: Counter[str] = Counter()
        #: Called before and after a step is executed.
        self.before: Callable[[StepMessage], None] = lambda message: None
        self.after: Callable[[StepMessage], None] = lambda message: None

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.sent]

    def _reached(self) -> None:
        if self._clock.now < self.away_until:
            raise BrokerUnreachable("The broker does not answer: refused")

    def send(self, message: StepMessage, job: str, queue: str, priority: int) -> None:
        self._reached()
        assert message.task_id == step_task_id(message.run_id, message.step_key, message.attempt)
        self.sent.append((message.step_key, message.attempt))
        if self.loses[message.step_key]:
            self.loses[message.step_key] -= 1
            return
        self.queue.append((priority, StepMessage.from_json(message.to_json())))
        self.most_at_once = max(self.most_at_once, len(self.queue))

    def wait(self, timeout: float) -> bool:
        self._reached()
        if not self.queue:
            self._clock.sleep(timeout)
            return False
        first = max(self.queue, key=lambda entry: entry[0])
        key = first[1].step_key
        left = self.durations.get(key, 0.0)
        if left > timeout:
            self.durations[key] = left - timeout
            self._clock.sleep(timeout)
            return False
        self._clock.sleep(left)
        self.queue.remove(first)
        self.before(first[1])
        woken: list[bool] = []
        # Its message is done then, too: whoever has the step has one as well.
        with suppress(Fenced):
            StepExecution(first[1], HOLDER, lambda: woken.append(True)).run()
        self.after(first[1])
        if not self.wakes_run:
            self._clock.sleep(timeout)
        return bool(woken) and self.wakes_run

    def queue_state(self, queue: str) -> QueueState:
        self._reached()
        return QueueState(len(self.queue), 1)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Result:
    """A run at its end."""

    instance: DagsterInstance
    run_id: str
    #: What the run's process told its caller.
    events: list[DagsterEvent]

    @property
    def status(self) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(self.run_id)
        assert run
        return run.status

    @property
    def succeeded(self) -> bool:
        return self.status == DagsterRunStatus.SUCCESS

    def value(self, key: str) -> Any:
        """What Dagster's default IO manager stored for a step: a pickle in the instance's folder."""
        with (Path(self.instance.storage_directory()) / self.run_id / key / "result").open("rb") as file:
            return pickle.load(file)

    def ends(self) -> dict[str, list[str]]:
        """How the attempts of each step ended, as the log has it."""
        found: dict[str, list[str]] = {}
        for event in events(self.instance, self.run_id):
            if event.event_type in ENDS:
                found.setdefault(str(event.step_key), []).append(event.event_type_value)
        return found

    def said(self, text: str) -> list[str]:
        """The lines of the run's log with this text."""
        return [line for line in said(self.instance, self.run_id) if text in line]


def executed(
    instance: DagsterInstance, a_job: Any, execution: Mapping[str, Any] | None = None, **more: Any
) -> Result:
    """A run of a job, driven to its end; `execution` is its `execution: config:`."""
    config = {"execution": {"config": execution}} if execution else {}
    run = started_run(instance, a_job, config, status=DagsterRunStatus.STARTING, **more)
    told = list(execute_run_iterator(reconstructable(a_job), run, instance))
    return Result(instance, run.run_id, told)


def resumed(instance: DagsterInstance, run: DagsterRun, a_job: Any, resume: bool = True) -> Result:
    """A run, driven from where it stopped to its end as a new process does."""
    told = list(execute_run_iterator(reconstructable(a_job), run, instance, resume_from_failure=resume))
    return Result(instance, run.run_id, told)


def announced(instance: DagsterInstance, run: DagsterRun, *keys: str, attempt: int = 1) -> None:
    """What an earlier process of the run wrote before it sent these steps."""
    for key in keys:
        event = DagsterEvent(
            DagsterEventType.STEP_WORKER_STARTING.value,
            run.job_name,
            step_key=key,
            event_specific_data=EngineEventData(
                {
                    "queue": MetadataValue.text("dagster"),
                    "priority": MetadataValue.int(5),
                    "attempt": MetadataValue.int(attempt),
                    "task": MetadataValue.text(step_task_id(run.run_id, key, attempt)),
                }
            ),
        )
        instance.report_dagster_event(event, run.run_id)


def interrupt(workers: Workers) -> None:
    """Somebody stops the run's process while its first step runs."""

    def stop(timeout: float) -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    workers.wait = stop  # type: ignore[method-assign]
