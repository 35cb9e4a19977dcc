"""A worker that gets nothing notices it: subscribes anew, connects anew, and in the end lets itself be restarted.

The broker is a stand-in here; with a real one, its consumers removed behind the worker's back, it is tested on the
stack.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import bootsteps
from celery.worker import state
from kombu.common import QoS

from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.timing import BROKER_ANSWER_SECS
from dagster_stack.worker import subscription
from dagster_stack.worker.subscription import Subscription


class KombuConsumer:
    """kombu's consumer of several queues, and RabbitMQ behind it: what the broker forgot, kombu does not know."""

    def __init__(self, names: list[str]) -> None:
        self.queues = [SimpleNamespace(name=name) for name in names]
        self.known: set[str] = set()
        self.at_broker: set[str] = set()
        self.channel = SimpleNamespace(basic_qos=self.basic_qos)
        #: What the broker gives at most: of each queue, and of all together (None: no such limit).
        self.of_each, self.of_all = 0, 0
        self.renewals = 0
        self.while_canceling: Callable[[], Any] = lambda: None

    def basic_qos(self, _size: int, count: int, over_channel: bool) -> None:
        """RabbitMQ's: a count of each consumer ends the one of the channel, as tried with RabbitMQ 4.0."""
        self.of_each, self.of_all = (self.of_each, count) if over_channel else (count, 0)

    def consuming_from(self, name: str) -> bool:
        return name in self.known

    def cancel(self) -> None:
        self.renewals += 1
        self.while_canceling()
        self.known, self.at_broker = set(), set()

    def consume(self) -> None:
        # Without any, kombu asks for nothing.
        self.known = self.at_broker = self.at_broker | {queue.name for queue in self.queues}


class Channel:
    """A channel, which RabbitMQ closes on a question for a queue that is not there."""

    def __init__(self, messages: dict[str, int]) -> None:
        self.messages = messages
        self.open = True

    def queue_declare(self, name: str, passive: bool) -> Any:
        assert passive
        if name not in self.messages:
            raise LookupError(name)
        return SimpleNamespace(message_count=self.messages[name], consumer_count=1)

    def close(self) -> None:
        self.open = False


class Worker:
    """A worker's consumer as far as it is looked at, with its broker, on a clock that the test moves."""

    def __init__(self, queues: list[str], processes: int = 1) -> None:
        self.now = 1000.0
        self.messages = dict.fromkeys(queues, 0)
        self.received = self.putting_aside = 0
        self.complaint: str | None = None
        self.blueprint = SimpleNamespace(state=bootsteps.RUN)
        self.channels: list[Channel] = []
        self.timeouts: list[float] = []
        socket = SimpleNamespace(fileno=lambda: 7, settimeout=self.timeouts.append)
        amqp = SimpleNamespace(sock=socket, transport=SimpleNamespace(sock=socket))
        self.connection = SimpleNamespace(
            connection=amqp,
            channel=self.channel,
            channel_errors=(LookupError,),
            transport=SimpleNamespace(driver_type="amqp"),
        )
        self.hub = SimpleNamespace(readers={7: None})
        self.timer = SimpleNamespace(call_repeatedly=lambda *timer: timer, cancel=self.timeouts.append)
        pool = SimpleNamespace(_pool=[object()] * processes, _waiting_to_start=set())
        self.pool = SimpleNamespace(num_processes=processes, _pool=pool)
        self.queues = queues
        self.soon: list[Callable[[], Any]] = []
        self.wanted = dict.fromkeys(queues)
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=self.wanted)))
        self.step = Subscription(self, clock=lambda: self.now)
        self.connect()

    def connect(self) -> None:
        """As Celery does it on each connection: its steps, then the event loop, which begins with a subscription."""
        subscription = self.task_consumer = KombuConsumer(self.queues)
        self.qos = QoS(
            lambda prefetch_count: subscription.basic_qos(0, prefetch_count, False), self.pool.num_processes
        )
        self.step.start(self)
        self.qos.update()
        self.task_consumer.consume()
        for call in self.soon:
            call()
        self.soon.clear()

    def call_soon(self, act: Callable[..., Any], *arguments: Any) -> None:
        self.soon.append(lambda: act(*arguments))

    def work(self) -> "Taken":
        """A process works on a message that came over the present connection."""
        taken = Taken(self.now, self.task_consumer.channel)
        state.reserved_requests.add(taken)
        state.active_requests.add(taken)
        return taken

    def channel(self) -> Channel:
        self.channels.append(Channel(self.messages))
        return self.channels[-1]

    def says(self) -> str | None:
        return self.complaint

    def add_task_queue(self, name: str) -> None:
        self.task_consumer.queues.append(SimpleNamespace(name=name))

    def look(self, seconds: int = 1) -> None:
        """Let so many seconds pass, with a look in each; the broker delivers to whoever is subscribed."""
        for _ in range(seconds):
            self.now += 1
            for name in self.task_consumer.at_broker:
                if self.messages.get(name) and not state.reserved_requests:
                    self.messages[name] -= 1
                    self.received += 1
            self.step.look(self)


class Taken:
    """A request that the worker has taken."""

    id = "1f0c"

    def __init__(self, taken_at: float, channel: Any = None) -> None:
        self.taken_at = taken_at
        self.message = SimpleNamespace(channel=channel)


@pytest.fixture(autouse=True)
def _nothing_taken() -> Iterator[None]:
    state.reserved_requests.clear()
    state.active_requests.clear()
    yield
    state.reserved_requests.clear()
    state.active_requests.clear()


@pytest.fixture
def worker() -> Worker:
    return Worker(["dagster"])


def test_an_idle_worker_subscribes_anew_again_and_again(worker: Worker) -> None:
    worker.look(95)

    assert worker.task_consumer.renewals == 3
    assert worker.task_consumer.at_broker == {"dagster"}
    assert worker.says() is None


def test_a_subscription_that_the_broker_forgot_is_back_in_half_a_minute(worker: Worker) -> None:
    worker.task_consumer.at_broker = set()

    worker.look(31)

    assert worker.task_consumer.at_broker == {"dagster"}


def test_a_message_that_waits_for_a_deaf_worker_is_taken_within_seconds(worker: Worker) -> None:
    worker.task_consumer.at_broker = set()
    worker.messages["dagster"] = 1

    worker.look(12)

    assert (worker.received, worker.messages["dagster"]) == (1, 0)


def test_a_worker_that_gets_messages_needs_no_other_proof(worker: Worker) -> None:
    for _ in range(20):
        worker.messages["dagster"] = 3
        worker.look(5)

    assert worker.received == 60
    assert worker.task_consumer.renewals == 0


def test_a_worker_whose_processes_are_busy_is_left_alone(worker: Worker) -> None:
    """It holds all it may: that more waits is as it should be."""
    busy = Taken(worker.now)
    state.reserved_requests.add(busy)
    state.active_requests.add(busy)
    worker.messages["dagster"] = 100

    worker.look(200)

    assert worker.task_consumer.renewals == 0
    assert worker.channels == []
    assert worker.says() is None


def test_a_worker_that_puts_a_message_aside_is_busy_with_it(worker: Worker) -> None:
    worker.putting_aside = 1
    worker.task_consumer.at_broker = set()
    worker.messages["dagster"] = 5

    worker.look(100)

    assert worker.channels == []


def test_a_partly_busy_worker_keeps_its_subscription_but_asks_what_waits() -> None:
    """A new subscription would not count what the worker holds: a message too many would wait behind it."""
    worker = Worker(["dagster"], processes=2)
    busy = Taken(worker.now)
    state.reserved_requests.add(busy)
    state.active_requests.add(busy)

    worker.look(100)
    assert worker.task_consumer.renewals == 0

    worker.messages["dagster"] = 1
    with pytest.raises(ConnectionError, match="1 in dagster"):
        worker.look(20)


def test_what_no_subscription_cures_is_a_new_connection_and_then_a_complaint(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that gets nothing, whatever it does
    monkeypatch.setattr(KombuConsumer, "consume", lambda self: setattr(self, "known", set(self.known)))
    worker.task_consumer.at_broker = set()
    worker.messages["dagster"] = 1

    # When it has tried to subscribe, then it connects anew, once
    with pytest.raises(ConnectionError, match=r"messages wait and none comes \(1 in dagster\)"):
        worker.look(30)
    assert worker.task_consumer.renewals == 1
    assert worker.says() is None
    worker.step.stop(worker)
    worker.step.start(worker)

    # And when that was no use, then the watchdog hears of it, until a message comes
    worker.look(20)
    assert worker.says() == "messages wait and none comes"
    worker.received += 1
    worker.look(1)
    assert worker.says() is None


def test_a_message_that_comes_while_the_subscription_ends_is_not_followed_by_another(worker: Worker) -> None:
    """With one process, the next one would wait behind it. Once it is done, the worker subscribes."""
    taken = Taken(worker.now)
    worker.task_consumer.while_canceling = lambda: state.reserved_requests.add(taken)
    worker.look(31)
    assert worker.task_consumer.at_broker == set()

    state.reserved_requests.clear()
    worker.look(1)

    assert worker.task_consumer.at_broker == {"dagster"}


def done(taken: Taken) -> None:
    state.reserved_requests.discard(taken)
    state.active_requests.discard(taken)


def test_after_a_reconnect_nothing_waits_behind_what_is_still_worked_on(worker: Worker) -> None:
    # Given a worker whose only process has a long step when the connection breaks
    long = worker.work()
    worker.step.stop(worker)
    worker.connect()
    worker.messages["dagster"] = 2

    # Then it takes nothing, and is well
    worker.look(3600)
    assert worker.task_consumer.at_broker == set()
    assert (worker.received, worker.says(), worker.channels) == (0, None, [])
    # And says what it is there for
    assert [queue.name for queue in worker.task_consumer.queues] == ["dagster"]

    # When the step has ended, then it goes on within a second
    done(long)
    worker.look(1)
    assert worker.task_consumer.at_broker == {"dagster"}
    assert worker.task_consumer.of_all == 0
    worker.look(1)
    assert worker.received == 1


def test_a_step_that_began_as_the_connection_broke_counts_too(worker: Worker) -> None:
    """Celery has it among the active ones alone."""
    long = worker.work()
    state.reserved_requests.discard(long)
    worker.step.stop(worker)
    worker.connect()

    worker.look(10)

    assert worker.task_consumer.at_broker == set()


def test_after_a_reconnect_a_partly_busy_worker_takes_what_it_has_room_for() -> None:
    # Given a worker with three processes, two of them at work when the connection breaks
    worker = Worker(["dagster"], processes=3)
    first, second = worker.work(), worker.work()
    worker.step.stop(worker)
    worker.connect()
    assert worker.task_consumer.at_broker == {"dagster"}
    limits = [worker.task_consumer.of_all]

    # When they end one after the other, beside what came since
    since = worker.work()
    for ended in (first, second):
        worker.look(2)
        done(ended)
        worker.look(2)
        limits.append(worker.task_consumer.of_all)

    # Then the broker's count follows, and in the end Celery's own is enough
    assert since in state.active_requests
    assert limits == [1, 2, 0]


def test_the_broker_counts_over_all_queues_whatever_celery_asks_for_meanwhile() -> None:
    """Else a worker holds a step of one queue while it executes a long one of the other."""
    worker = Worker(["dagster", "heavy"])
    worker.look(1)
    assert worker.task_consumer.of_all == 1

    # As Celery does it when its pool grows
    worker.qos.increment_eventually()
    worker.qos.update()

    assert (worker.task_consumer.of_each, worker.task_consumer.of_all) == (2, 1)


def test_a_queue_that_is_added_is_counted_with_the_others(worker: Worker) -> None:
    worker.look(1)
    assert worker.task_consumer.of_all == 0

    worker.wanted["heavy"] = None
    worker.look(1)

    assert worker.task_consumer.of_all == 1


def test_queues_that_were_added_are_subscribed_and_those_that_were_canceled_stay_so(worker: Worker) -> None:
    worker.wanted["heavy"] = None
    worker.look(1)
    assert worker.task_consumer.at_broker == {"dagster", "heavy"}

    # As `cancel_consumer` does it
    del worker.wanted["dagster"]
    worker.task_consumer.queues = [queue for queue in worker.task_consumer.queues if queue.name == "heavy"]
    worker.task_consumer.known = worker.task_consumer.at_broker = {"heavy"}
    worker.messages["dagster"] = 10
    worker.look(100)

    assert worker.task_consumer.at_broker == {"heavy"}
    assert worker.says() is None


def test_a_connection_that_nobody_reads_is_given_up(worker: Worker) -> None:
    worker.hub.readers.clear()

    with pytest.raises(ConnectionError, match="does not read"):
        worker.look(1)


def test_a_worker_on_its_way_out_takes_nothing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.task_consumer.known = worker.task_consumer.at_broker = set()
    monkeypatch.setattr(subscription, "is_leaving", lambda: True)
    worker.look(100)
    monkeypatch.undo()
    worker.blueprint.state = bootsteps.TERMINATE
    worker.look(100)

    assert worker.task_consumer.at_broker == set()


def test_a_message_that_waits_beside_an_idle_process_is_a_complaint(worker: Worker) -> None:
    waits = Taken(worker.now)
    state.reserved_requests.add(waits)
    worker.look(subscription.STUCK_SECS)
    assert worker.says() is None

    worker.look(1)
    assert worker.says() == "task 1f0c waits for a process for 61 s, though one is idle"

    # When it is executed, all is well
    state.active_requests.add(waits)
    worker.look(1)
    assert worker.says() is None


def test_a_message_may_wait_for_a_process_that_loads_the_code(worker: Worker) -> None:
    worker.pool._pool._waiting_to_start.add(1)
    waits = Taken(worker.now)
    state.reserved_requests.add(waits)

    worker.look(300)

    assert worker.says() is None


def test_a_queue_that_is_not_there_has_nothing_and_its_question_leaves_no_channel(worker: Worker) -> None:
    worker.messages = {"dagster": 3}

    connection: Any = worker.connection
    assert QueueState.of(connection, "dagster").ready == 3
    assert QueueState.of(connection, "none") == QueueState(0, 0)
    assert [channel.open for channel in worker.channels] == [False, False]


def test_no_answer_is_waited_for_without_end(worker: Worker) -> None:
    assert worker.timeouts == [BROKER_ANSWER_SECS]


def test_in_the_embedded_mode_there_is_nothing_to_look_at() -> None:
    worker = Worker(["dagster"])
    worker.step.stop(worker)
    worker.connection.transport.driver_type = "filesystem"

    worker.step.start(worker)

    assert worker.step._timer is None
