"""A worker's consumer with a stand-in for the broker, on a clock that the test moves. A real one: tests/stack."""

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

from celery import bootsteps
from celery.worker import state
from kombu.common import QoS

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


def done(taken: Taken) -> None:
    state.reserved_requests.discard(taken)
    state.active_requests.discard(taken)
