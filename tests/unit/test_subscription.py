"""A worker that gets nothing notices it: subscribes anew, connects anew, and in the end lets itself be restarted.

The broker is a stand-in here; with a real one, its consumers removed behind the worker's back, it is tested on the
stack.
"""

from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from celery import bootsteps
from celery.worker import state
from kombu.common import QoS

from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.timing import BROKER_ANSWER_SECS
from dagster_stack.worker import respite, subscription
from dagster_stack.worker.subscription import Subscription


class KombuConsumer:
    """kombu's consumer of several queues, and RabbitMQ behind it: what the broker forgot, kombu does not know."""

    def __init__(self, names: list[str]) -> None:
        self.queues = [SimpleNamespace(name=name) for name in names]
        self.known: set[str] = set()
        self.at_broker: set[str] = set()
        self.channel = SimpleNamespace(
            basic_qos=self.basic_qos, basic_cancel=self.basic_cancel, callbacks={}, cancel_callbacks={}
        )
        #: What the broker gives at most of a queue that is subscribed to now, and of those that are.
        self.of_each = 0
        self.given: dict[str, int] = {}
        self.order: list[str] = []
        self._active_tags: dict[str, str] = {}
        self._tags = count()
        self.renewals = 0
        self.while_canceling: Callable[[], Any] = lambda: None
        self.while_subscribing: Callable[[], Any] = lambda: None

    def basic_qos(self, _size: int, most: int, over_channel: bool) -> None:
        """RabbitMQ's: it holds for what is subscribed to afterwards; over a channel 4.3 refuses it."""
        assert not over_channel
        self.of_each = most

    def basic_cancel(self, tag: str, nowait: bool = False) -> None:
        queue = tag.split()[1]
        del self.given[queue]
        self.known, self.at_broker = self.known - {queue}, self.at_broker - {queue}
        self.renewals += bool(queue)
        assert nowait

    def consuming_from(self, name: str) -> bool:
        return name in self.known

    def cancel(self) -> None:
        self.renewals += 1
        self.while_canceling()
        self.known, self.at_broker = set(), set()
        self.given, self._active_tags = {}, {}

    def consume(self) -> None:
        meanwhile, self.while_subscribing = self.while_subscribing, lambda: None
        meanwhile()
        # Without any, kombu asks for nothing.
        self.order = [queue.name for queue in self.queues]
        for name in self.order:
            self.given.setdefault(name, self.of_each)
            tag = self._active_tags.setdefault(name, f"{next(self._tags)} {name}")
            self.channel.callbacks[tag] = print
        self.known = self.at_broker = self.at_broker | set(self.order)


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
        self.connection_errors = (ConnectionError,)
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
        subscription.of_each = self.pool.num_processes
        self.qos = QoS(
            lambda prefetch_count: subscription.basic_qos(0, prefetch_count, False), self.pool.num_processes
        )
        self.step.start(self)
        self.qos.update()
        self.task_consumer.consume()
        self.turn()

    def turn(self) -> None:
        """The event loop does what is to be done soon."""
        while self.soon:
            self.soon.pop(0)()

    def call_soon(self, act: Callable[..., Any], *arguments: Any) -> None:
        self.soon.append(lambda: act(*arguments))

    def work(self) -> "Taken":
        """A process works on a message that came over the present connection."""
        taken = Taken(self.now)
        state.reserved_requests.add(taken)
        state.active_requests.add(taken)
        return taken

    def receive(self, queue: str) -> "Message":
        """The broker delivers a message of a queue, which a process works on if the worker takes it."""
        self.received += 1
        message = Message(self.task_consumer._active_tags.get(queue, ""))
        if self.step.takes(message):
            message.taken = self.work()
            self.step.on_taken(message)
        return message

    def end(self, taken: "Taken | None") -> None:
        """The process is done, and the message answered."""
        assert taken
        done(taken)
        self.step.on_settled()
        self.turn()

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

    def __init__(self, taken_at: float) -> None:
        self.taken_at = taken_at


class Message:
    """A message as kombu hands it over."""

    def __init__(self, tag: str) -> None:
        self.delivery_info = {"consumer_tag": tag}
        self.taken: Taken | None = None
        self.is_back = False

    def reject_log_error(self, _logger: Any, _errors: Any, requeue: bool) -> None:
        assert requeue
        self.is_back = True


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
    assert worker.task_consumer.given == {"dagster": 1}
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
    assert worker.task_consumer.given == {"dagster": 1}

    # When they end one after the other, beside what came since
    since = worker.receive("dagster")
    worker.turn()
    assert worker.task_consumer.given == {}
    worker.end(first)
    assert worker.task_consumer.given == {"dagster": 1}
    worker.end(second)
    assert worker.task_consumer.given == {"dagster": 2}
    worker.end(since.taken)

    # Then in the end the broker's count is enough, and no subscription follows its messages any more
    assert worker.task_consumer.given == {"dagster": 3}
    renewals = worker.task_consumer.renewals
    for _ in range(3):
        worker.end(worker.receive("dagster").taken)
    assert worker.task_consumer.renewals == renewals
    # And of former ones nothing is kept
    assert len(worker.task_consumer.channel.callbacks) == 1


def test_a_message_of_a_former_subscription_that_comes_late_is_counted_too(on_two: Worker) -> None:
    """The worker rests without a wait for the broker, which may have sent one more."""
    first = on_two.receive("dagster")
    on_two.turn()
    del on_two.wanted["heavy"]
    on_two.task_consumer.queues = [queue for queue in on_two.task_consumer.queues if queue.name == "dagster"]

    # When it comes while the worker subscribes again, to the one queue that is left
    late: list[Message] = []
    on_two.task_consumer.while_subscribing = lambda: late.append(on_two.receive("dagster"))
    on_two.end(first.taken)

    # Then nothing more is to come, and what comes all the same goes back
    assert late[0].taken
    assert on_two.task_consumer.given == {}
    on_two.end(late[0].taken)
    assert on_two.task_consumer.given == {"dagster": 1}


def test_what_ended_without_an_answer_is_noticed_at_the_next_look() -> None:
    worker = Worker(["dagster"], processes=3)
    first, _ = worker.work(), worker.work()
    worker.step.stop(worker)
    worker.connect()

    done(first)
    worker.look(1)

    assert worker.task_consumer.given == {"dagster": 2}


@pytest.fixture
def on_two() -> Worker:
    """A worker with one process on two queues."""
    return Worker(["dagster", "heavy"])


def test_no_queue_gives_a_worker_anything_while_it_works_on_a_message_of_another(on_two: Worker) -> None:
    """Else it holds a step of one queue while it executes a long one of the other."""
    assert on_two.task_consumer.given == {"dagster": 1, "heavy": 1}

    # When each queue gives one at the same instant
    first, second = on_two.receive("dagster"), on_two.receive("heavy")
    on_two.turn()

    # Then the second one goes back at once, and no queue gives more
    assert (bool(first.taken), second.taken, second.is_back) == (True, None, True)
    assert on_two.task_consumer.at_broker == set()
    on_two.look(100)
    assert on_two.task_consumer.at_broker == set()

    # And once the process is done, all of them do
    on_two.end(first.taken)
    assert on_two.task_consumer.given == {"dagster": 1, "heavy": 1}


def test_a_message_goes_back_only_when_no_queue_could_give_it_to_this_worker_again(on_two: Worker) -> None:
    first = on_two.receive("dagster")
    seen: list[set[str]] = []
    surplus = on_two.receive("heavy")
    surplus.reject_log_error = lambda *_, **__: seen.append(set(on_two.task_consumer.at_broker))  # type: ignore[method-assign]

    on_two.turn()

    assert first.taken
    assert seen == [set()]


def test_queues_take_turns(on_two: Worker) -> None:
    """The first one that is subscribed to is the first to give: one with a backlog would leave the others nothing."""
    firsts = []
    for _ in range(4):
        first = on_two.task_consumer.order[0]
        firsts.append(first)
        on_two.end(on_two.receive(first).taken)

    assert firsts == ["dagster", "heavy", "dagster", "heavy"]


def test_a_worker_on_several_queues_takes_as_many_messages_as_it_has_processes() -> None:
    worker = Worker(["dagster", "heavy"], processes=3)

    taken = [
        worker.receive("dagster"),
        worker.receive("heavy"),
        worker.receive("dagster"),
        worker.receive("heavy"),
    ]
    worker.turn()

    assert [bool(each.taken) for each in taken] == [True, True, True, False]
    worker.end(taken[0].taken)
    assert worker.task_consumer.given == {"dagster": 1, "heavy": 1}
    # Also when there is room before all are busy
    worker.end(taken[1].taken)
    assert worker.task_consumer.given == {"dagster": 2, "heavy": 2}


def test_a_worker_that_leaves_gives_back_and_subscribes_to_nothing(
    on_two: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = on_two.receive("dagster"), on_two.receive("heavy")
    monkeypatch.setattr(subscription, "is_leaving", lambda: True)

    on_two.end(first.taken)

    assert second.is_back
    assert on_two.task_consumer.at_broker == set()


def test_what_was_too_much_on_a_broken_connection_is_not_given_back_on_the_next(on_two: Worker) -> None:
    first, second = on_two.receive("dagster"), on_two.receive("heavy")
    on_two.step.stop(on_two)
    on_two.soon.clear()
    on_two.connect()

    on_two.end(first.taken)

    assert not second.is_back
    assert on_two.task_consumer.given == {"dagster": 1, "heavy": 1}


def test_a_worker_on_one_queue_is_left_to_the_broker(worker: Worker) -> None:
    for _ in range(5):
        worker.end(worker.receive("dagster").taken)

    assert worker.task_consumer.renewals == 0


def test_a_queue_that_is_added_is_counted_with_the_others(worker: Worker) -> None:
    worker.wanted["heavy"] = None
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1, "heavy": 1}

    first, second = worker.receive("heavy"), worker.receive("dagster")
    worker.turn()

    assert first.taken
    assert second.is_back


def test_queues_that_were_added_are_subscribed_and_those_that_were_canceled_stay_so(worker: Worker) -> None:
    worker.wanted["heavy"] = None
    worker.look(1)
    assert worker.task_consumer.at_broker == {"dagster", "heavy"}

    # As `cancel_consumer` does it
    del worker.wanted["dagster"]
    worker.task_consumer.queues = [queue for queue in worker.task_consumer.queues if queue.name == "heavy"]
    worker.task_consumer.known = worker.task_consumer.at_broker = {"heavy"}
    worker.turn()
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


# --- a worker that is told to rest (respite.py) -----------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Tell the workers of this process to rest for so many seconds of their own clock; 0: no more."""

    def tell(seconds: float) -> None:
        monkeypatch.setattr(respite, "seconds_left", lambda: seconds)

    return tell


def test_a_worker_at_rest_takes_nothing_and_does_not_subscribe_again(
    worker: Worker, told: Callable[[float], None]
) -> None:
    told(30)
    worker.messages["dagster"] = 3
    worker.look(1)
    received = worker.received

    worker.look(3600)

    # Then it is well all the same, and asks nobody why it gets nothing
    assert worker.task_consumer.at_broker == set()
    assert (worker.received, worker.says(), worker.step.is_at_rest) == (received, None, True)
    assert worker.channels == []
    # And once it need not rest any more it goes on within a second
    told(0)
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1}
    assert not worker.step.is_at_rest
    assert len(worker.task_consumer.channel.callbacks) == 1


def test_a_message_that_was_on_its_way_is_worked_on_before_the_worker_counts_as_at_rest(
    worker: Worker, told: Callable[[float], None]
) -> None:
    # Given a broker that has sent a message before it hears that there is no subscription any more
    late: list[tuple[Message, bool]] = []

    def answer(_size: int, most: int, _over_channel: bool) -> None:
        late.append((worker.receive("dagster"), worker.step.is_at_rest))
        worker.task_consumer.of_each = most

    worker.task_consumer.channel.basic_qos = answer
    told(30)

    worker.look(1)

    # Then it is taken, and who asks for what the worker holds sees it
    ((message, was_at_rest),) = late
    assert message.taken
    assert not was_at_rest
    assert subscription.held(worker) == 1
    # And nothing follows it
    worker.end(message.taken)
    worker.look(60)
    assert (worker.task_consumer.at_broker, worker.step.is_at_rest) == (set(), True)


@pytest.mark.parametrize("queues", [["dagster"], ["dagster", "heavy"]])
def test_a_busy_worker_that_is_told_to_rest_ends_what_it_has(
    queues: list[str], told: Callable[[float], None]
) -> None:
    worker = Worker(queues)
    long = worker.receive("dagster")
    worker.turn()
    told(30)

    worker.look(600)
    assert worker.task_consumer.at_broker == set()
    worker.end(long.taken)
    worker.look(60)

    assert worker.task_consumer.at_broker == set()
    assert (subscription.held(worker), worker.step.is_at_rest) == (0, True)
    told(0)
    worker.look(1)
    assert worker.task_consumer.given == dict.fromkeys(queues, 1)


def test_a_worker_at_rest_stays_so_on_a_new_connection(worker: Worker, told: Callable[[float], None]) -> None:
    told(30)
    worker.look(1)
    worker.step.stop(worker)

    worker.connect()

    assert worker.task_consumer.at_broker == set()
    assert not worker.step.is_at_rest
    worker.look(1)
    assert (worker.task_consumer.at_broker, worker.step.is_at_rest) == (set(), True)
    told(0)
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1}
