"""Steps on their way: announced before they are sent, kept while the broker is away, looked after until they end."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import pytest
from dagster import DagsterInstance, DagsterRun, reconstructable
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanOrchestrationContextManager
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import StepHandlerContext
from dagster._grpc.types import ExecuteStepArgs
from kombu.exceptions import OperationalError

from dagster_stack.broker.link import BrokerLink, QueueState
from dagster_stack.broker.messages import StepMessage, step_task_id
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.executor.step_handler import (
    MISSING_LOOK_SECS,
    MISSING_LOOKS,
    QUEUE_LOOK_SECS,
    CeleryStepHandler,
)
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.runs_by_hand import events, said, started_run


class Broker:
    """A link and an app in one, as far as the handler uses them, with RabbitMQ's behaviour.

    A message is kept in its queue until a worker takes it, and counts as ready as long; a queue that does not
    exist is empty and has no consumer. `inspect().query_task` names the tasks that workers have, waiting or
    running; when no worker answers in time it is None. While the broker is away every call raises: the link's
    BrokerUnreachable, the app's control what kombu or a socket raises (OperationalError after 6 s without a
    server, ConnectionResetError on a connection of its pool that the broker has closed).
    """

    def __init__(self) -> None:
        self.away = False
        #: The app has connections of its own: they may be dead while the link stands.
        self.control_error: Exception | None = None
        self.queues: dict[str, list[StepMessage]] = {}
        self.consumers: dict[str, int] = {}
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
    """A run with a handler, as its executor has them."""

    def __init__(self, instance: DagsterInstance, broker: Broker, job: Any, stack: ExitStack) -> None:
        self.instance = instance
        self.broker = broker
        self.run: DagsterRun = started_run(instance, job)
        self.plan: ExecutionPlan = create_execution_plan(job)
        manager = stack.enter_context(_orchestration(instance, self.run, job, self.plan))
        self.context: PlanOrchestrationContext = manager
        self.handler = CeleryStepHandler(cast(Any, broker), self.run, cast(BrokerLink, broker))

    def launch(self, *keys: str, attempts: int = 1) -> None:
        steps = cast(Sequence[ExecutionStep], [self.plan.get_step_by_key(key) for key in keys])
        arguments = ExecuteStepArgs(
            job_origin=cast(Any, self.run.job_code_origin),
            run_id=self.run.run_id,
            step_keys_to_execute=list(keys),
            instance_ref=None,
            retry_mode=RetryMode.DEFERRED,
            known_state=KnownExecutionState(dict.fromkeys(keys, attempts - 1) if attempts > 1 else {}),
        )
        made = StepHandlerContext(self.instance, self.context, steps, arguments, self.run)
        for _ in self.handler.launch_step(made):
            pass

    def send(self, *keys: str) -> None:
        self.launch(*keys)
        self.handler.send(self.context)

    def look(self) -> bool:
        return self.handler.look_after(self.context)

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().set_for_run(monkeypatch)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def driven(
    instance: DagsterInstance, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Driven]:
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    with ExitStack() as stack:
        yield Driven(instance, broker, step_jobs.prioritized, stack)


# --- sending ------------------------------------------------------------------------------------------------------


def test_a_step_is_announced_before_it_is_sent(driven: Driven, broker: Broker) -> None:
    """A process that dies in between leaves a trace of what it was about to do."""
    driven.launch("one")

    (announced,) = (
        event
        for event in events(driven.instance, driven.run.run_id)
        if event.event_type_value == "STEP_WORKER_STARTING"
    )
    assert (announced.step_key, announced.message) == ("one", 'Sending step "one" to queue "dagster".')
    assert broker.sent == []

    driven.handler.send(driven.context)
    assert broker.keys == ["one"]


def test_an_announcement_names_queue_priority_attempt_and_task(driven: Driven) -> None:
    driven.launch("heavy", attempts=2)

    (announced,) = (
        event
        for event in events(driven.instance, driven.run.run_id)
        if event.event_type_value == "STEP_WORKER_STARTING"
    )
    metadata = {name: value.value for name, value in announced.engine_event_data.metadata.items()}
    assert metadata == {"queue": "heavy", "priority": 10, "attempt": 2, "task": driven.task("heavy", 2)}


def test_each_step_goes_to_its_queue_with_its_priority(driven: Driven, broker: Broker) -> None:
    """The run of this job adds 1 to the priority of each step."""
    driven.send("unimportant", "one", "heavy")

    assert broker.sent == [("unimportant", "dagster", 2), ("one", "dagster", 6), ("heavy", "heavy", 10)]


def test_a_step_is_sent_once(driven: Driven, broker: Broker) -> None:
    driven.send("one")
    driven.handler.send(driven.context)

    assert broker.keys == ["one"]


def test_while_the_broker_is_away_steps_wait_and_the_run_log_says_so_once(
    driven: Driven, broker: Broker
) -> None:
    # Given a broker that is away when the first step is ready, and still when the next one is
    broker.away = True
    driven.send("one")
    driven.send("unimportant")
    driven.handler.send(driven.context)
    waiting = [line for line in driven.reported if line.startswith("Waiting for the broker")]
    assert waiting == ["Waiting for the broker: 1 steps are to be sent. The broker does not answer: refused"]

    # When it is back
    broker.away = False
    driven.handler.send(driven.context)

    # Then all are sent in their order, and that is said once too
    assert broker.keys == ["one", "unimportant"]
    driven.handler.send(driven.context)
    assert driven.reported.count("The broker is back: all steps that were ready are sent.") == 1


def test_a_broker_that_goes_in_the_middle_gets_no_step_twice(
    driven: Driven, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a broker that goes after the first of three steps
    send = broker.send

    def send_one(message: StepMessage, *where: Any) -> None:
        send(message, *where)
        broker.away = True

    monkeypatch.setattr(broker, "send", send_one)
    driven.send("unimportant", "one", "heavy")
    assert broker.keys == ["unimportant"]

    # When it is back for good
    monkeypatch.setattr(broker, "send", send)
    broker.away = False
    driven.handler.send(driven.context)

    assert broker.keys == ["unimportant", "one", "heavy"]


# --- queues without a worker -------------------------------------------------------------------------------------


def test_a_queue_that_nobody_consumes_is_told_once_with_the_command_that_helps(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given steps in a queue for which nobody started a worker, and others that have one
    broker.consumers["dagster"] = 1
    driven.send("heavy", "one")

    # When some seconds pass
    for _ in range(5):
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()

    # Then the run's log says what is missing, once
    told = [line for line in driven.reported if "no worker consumes" in line]
    assert told == [
        'Steps wait in queue "heavy" (1) and no worker consumes it. Start one:'
        " docker compose run --detach worker celery -A dagster_stack.app worker -n heavy@%h -Q heavy"
    ]

    # And that a worker came, once
    broker.consumers["heavy"] = 1
    for _ in range(3):
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()
    assert driven.reported.count('A worker consumes queue "heavy" now.') == 1


def test_in_the_embedded_mode_the_command_is_that_of_make_dev(
    instance: DagsterInstance, broker: Broker, clock: Clock
) -> None:
    broker.broker_url = "filesystem://"
    with ExitStack() as stack:
        driven = Driven(instance, broker, step_jobs.prioritized, stack)
        driven.send("heavy")
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()

        (told,) = (line for line in driven.reported if "no worker consumes" in line)
    assert told.endswith("Start one: DEV_QUEUES=dagster,heavy make dev")


def test_a_queue_that_loses_its_worker_again_is_told_again(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    driven.send("heavy")

    for consumers in (0, 1, 0):
        broker.consumers["heavy"] = consumers
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()

    assert len([line for line in driven.reported if "no worker consumes" in line]) == 2


def test_within_five_seconds_the_run_log_tells_of_a_queue_without_worker() -> None:
    assert QUEUE_LOOK_SECS < 5


def test_an_empty_queue_without_worker_is_no_matter(driven: Driven, broker: Broker, clock: Clock) -> None:
    """Its steps were taken; a worker that stops has cancelled its consumer while its last step runs."""
    driven.send("one")
    broker.take()

    clock.sleep(QUEUE_LOOK_SECS)
    driven.look()

    assert not [line for line in driven.reported if "no worker consumes" in line]


# --- steps that nobody has ------------------------------------------------------------------------------------------


def looks(driven: Driven, clock: Clock, count: int) -> list[bool]:
    """What so many looks for missing steps say, with the time between them that they need."""
    found = []
    for _ in range(count):
        clock.sleep(MISSING_LOOK_SECS)
        found.append(driven.look())
    return found


def test_a_step_that_nobody_has_is_sent_again_after_two_looks(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a step whose message was lost
    driven.send("one")
    broker.lose()

    # When workers are asked, then it counts as lost only after having been missing twice
    assert MISSING_LOOKS == 2
    assert looks(driven, clock, 2) == [False, True]
    driven.handler.send_missing_again(driven.context)

    # And it is sent again under the same id, which the run's log says
    assert broker.keys == ["one", "one"]
    assert [message.task_id for message in broker.queues["dagster"]] == [driven.task("one")]
    assert len([line for line in driven.reported if "its message was lost, it is sent again" in line]) == 1

    # And once more only when it is lost again
    driven.handler.send_missing_again(driven.context)
    assert looks(driven, clock, 4) == [False] * 4
    assert broker.keys == ["one", "one"]


def test_a_step_that_a_worker_has_is_not_missing(driven: Driven, broker: Broker, clock: Clock) -> None:
    """A step of hours is silent, and well."""
    driven.send("one")
    broker.take()

    assert looks(driven, clock, 5) == [False] * 5


def test_a_step_that_waits_in_its_queue_is_not_missing(driven: Driven, broker: Broker, clock: Clock) -> None:
    """Nobody is asked: with thousands of waiting steps that would take long."""
    driven.send("one")

    assert looks(driven, clock, 5) == [False] * 5
    assert broker.questions == []


def test_missing_looks_must_follow_each_other(driven: Driven, broker: Broker, clock: Clock) -> None:
    """A look may fall between a delivery and its execution, or meet a worker that is slow to answer."""
    driven.send("one")
    task = broker.take()
    for with_worker in (False, True, False, True):
        broker.with_workers = {task} if with_worker else set()
        assert looks(driven, clock, 1) == [False]


def test_without_any_answer_from_workers_steps_are_missing(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """All workers are gone with their steps: the message waits for the next one to come."""
    driven.send("one")
    broker.take()
    broker.workers_answer = False

    assert looks(driven, clock, 2) == [False, True]


def test_a_broker_that_does_not_answer_says_nothing_about_a_step(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """Unknown is not lost: nothing is sent twice because of a broker that restarts."""
    driven.send("one")
    broker.lose()
    broker.away = True

    assert looks(driven, clock, 5) == [False] * 5

    # And nothing was counted meanwhile
    broker.away = False
    assert looks(driven, clock, 2) == [False, True]


#: What the app's control raises without a broker, and on a connection that a broker closed when it restarted.
CONTROL_ERRORS = [OperationalError("refused"), ConnectionResetError(104, "Connection reset by peer")]


@pytest.mark.parametrize("error", CONTROL_ERRORS, ids=lambda error: type(error).__name__)
def test_workers_that_can_not_be_asked_say_nothing_about_a_step(
    driven: Driven, broker: Broker, clock: Clock, error: Exception
) -> None:
    """The broker restarted between two questions: the run must go on."""
    driven.send("one")
    broker.lose()
    broker.control_error = error

    assert looks(driven, clock, 3) == [False] * 3

    broker.control_error = None
    assert looks(driven, clock, 2) == [False, True]


def test_a_step_that_was_not_sent_yet_is_not_missing(
    driven: Driven, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.away = True
    driven.send("one")

    # Given a link that can ask but not send
    broker.away = False

    def refused(*_: Any) -> None:
        raise BrokerUnreachable("refused")

    monkeypatch.setattr(broker, "send", refused)

    assert looks(driven, clock, 4) == [False] * 4
    assert broker.questions == []


def test_nobody_is_asked_for_steps_that_were_sent_a_moment_ago(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """A question to all workers takes a second: a chain of short steps must never wait for one."""
    for key in ("one", "unimportant"):
        clock.sleep(MISSING_LOOK_SECS - 1)
        driven.send(key)
        clock.sleep(1)
        assert not driven.look()
        driven.handler.forget(key)

    assert broker.questions == []


def test_a_lost_step_is_missed_also_while_other_steps_end(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a step whose message was lost, in a run in which others end all the time
    driven.send("one")
    broker.lose()

    # When time passes
    found = False
    for _ in range(2 * MISSING_LOOKS):
        driven.send("unimportant")
        broker.take()
        driven.handler.forget("unimportant")
        clock.sleep(MISSING_LOOK_SECS / 2)
        found = driven.look()

    # Then it is found missing as soon as in a silent run
    assert found


def test_a_step_that_has_ended_is_not_looked_for(driven: Driven, broker: Broker, clock: Clock) -> None:
    driven.send("one")
    broker.lose()
    driven.handler.forget("one")

    assert looks(driven, clock, 4) == [False] * 4


def test_a_question_names_so_many_steps_at_most(
    instance: DagsterInstance, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_stack.executor.step_handler.QUESTION_SIZE", 5)
    with ExitStack() as stack:
        driven = Driven(instance, broker, step_jobs.wide, stack)
        driven.send(*(f"step_{number:02d}" for number in range(12)))
        broker.lose()

        looks(driven, clock, 2)

    assert [len(question) for question in broker.questions] == [5, 5]


# --- calling back -------------------------------------------------------------------------------------------------------


def test_revoked_steps_are_called_back_from_queues_and_workers(driven: Driven, broker: Broker) -> None:
    # Given a step that runs, one that waits in its queue
    driven.send("one", "unimportant")
    broker.take()

    driven.handler.revoke_all()

    # Then the one is interrupted, the other dropped by the worker that gets it
    ((ids, options),) = broker.revoked
    assert set(ids) == {driven.task("one"), driven.task("unimportant")}
    assert options == {"terminate": True, "signal": "SIGINT"}


def test_revoked_steps_that_wait_for_the_broker_are_never_sent(driven: Driven, broker: Broker) -> None:
    broker.away = True
    driven.send("one")

    driven.handler.revoke_all()

    broker.away = False
    driven.handler.send(driven.context)
    assert broker.sent == []


@pytest.mark.parametrize("error", CONTROL_ERRORS, ids=lambda error: type(error).__name__)
def test_a_run_can_be_stopped_while_the_broker_is_away(
    driven: Driven, broker: Broker, error: Exception
) -> None:
    """Nobody can be called back then; whoever gets such a step asks the event log and drops it."""
    driven.send("one")
    broker.control_error = error

    driven.handler.revoke_all()

    assert broker.revoked == []


def test_without_steps_nothing_is_revoked(driven: Driven, broker: Broker) -> None:
    driven.handler.revoke_all()

    assert broker.revoked == []


def test_a_step_can_be_called_back_alone(driven: Driven, broker: Broker) -> None:
    driven.send("one", "unimportant")
    arguments = driven.handler._in_flight  # both are on their way
    assert set(arguments) == {"one", "unimportant"}

    class Context:
        """Of a `StepHandlerContext` only the keys matter here."""

        class execute_step_args:  # noqa: N801
            step_keys_to_execute = ("one", "somebody_elses")

    list(driven.handler.terminate_step(cast(StepHandlerContext, Context())))

    assert [ids for ids, _ in broker.revoked] == [[driven.task("one")]]


def test_a_step_is_never_failed_for_its_health(driven: Driven) -> None:
    """Dagster's check may only fail a step; one that nobody has is sent again instead."""
    assert driven.handler.check_step_health(cast(StepHandlerContext, None)).is_healthy
