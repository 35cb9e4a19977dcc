"""Proof that a worker gets messages. One that answers pings may have lost its subscription, and wait for ever.

After a reconnect a worker whose processes are all busy does not subscribe until one is free, since the broker would
give it as many messages as to an idle one, to wait behind what it works on.

Three things are looked at: that the broker confirms the subscription anew, that nothing waits in a queue for a
worker with a free process, and that no message that was taken waits for a process that is idle. The cures are a new
subscription, a new connection, and in the end the watchdog's exit. All of it happens in the worker's event loop, to
which the connection belongs.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.worker import state

from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.patches.celery import processes, starting
from dagster_stack.timing import BROKER_ANSWER_SECS
from dagster_stack.worker.shutdown import is_leaving

logger = logging.getLogger(__name__)

#: Seconds between looks. Most cost nothing.
LOOK_SECS = 1
#: Seconds after which an idle worker subscribes anew. One that gets messages has its proof in them.
RENEWAL_SECS = 30
#: Seconds between two questions of a worker with a free process for what waits in its queues.
QUESTION_SECS = 5
#: Answers in a row that messages wait while none comes: from these numbers on the next cure is tried.
ANSWERS_TO_SUBSCRIBE, ANSWERS_TO_CONNECT = 2, 3
#: Seconds that a message may wait for a process while one is idle.
STUCK_SECS = 60


class Subscription(bootsteps.StartStopStep):
    """The part of a worker's consumer that makes sure that it gets messages, on one connection after the other."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._clock = clock
        self._timer: Any = None
        self._received = 0
        self._renew_at = self._ask_at = 0.0
        #: What this connection may take at once, if less than Celery asked for.
        self._limit: int | None = None
        #: Answers in a row that something waits, while nothing comes; also over connections.
        self._unanswered = 0

    def start(self, consumer: Any) -> None:
        if consumer.hub is None or consumer.connection.transport.driver_type != "amqp":
            # The folder of the embedded mode knows no subscriptions.
            return
        # Whatever is asked on this connection: without an answer the event loop would stand still.
        consumer.connection.connection.transport.sock.settimeout(BROKER_ANSWER_SECS)
        self._limit = None
        self._follow(consumer)
        if free(consumer):
            self._limit_prefetch(consumer)
        else:
            start_unsubscribed(consumer)
        now = self._clock()
        self._renew_at, self._ask_at = now + RENEWAL_SECS, now + QUESTION_SECS
        self._timer = consumer.timer.call_repeatedly(LOOK_SECS, self.look, (consumer,))

    def stop(self, consumer: Any) -> None:
        if self._timer:
            consumer.timer.cancel(self._timer)
            self._timer = None

    def look(self, consumer: Any) -> None:
        """Raises ConnectionError when only a new connection can help: Celery makes one."""
        if consumer.blueprint.state != bootsteps.RUN or is_leaving():
            # A worker that stops takes nothing.
            return
        now = self._clock()
        if consumer.received != self._received:
            self._received, self._unanswered = consumer.received, 0
            self._renew_at = now + RENEWAL_SECS
        consumer.complaint = stuck(consumer, now) or self._complaint()
        if not free(consumer):
            return
        if not is_read(consumer):
            raise ConnectionError("the event loop does not read the connection to the broker")
        self._limit_prefetch(consumer)
        if now >= self._renew_at and not held(consumer):
            self._renew_at = now + RENEWAL_SECS
            # Messages that are delivered before the broker confirms that are taken as usual.
            consumer.task_consumer.cancel()
        if free(consumer):
            subscribe(consumer)
        if now >= self._ask_at:
            self._ask_at = now + QUESTION_SECS
            self._react_to_backlog(consumer, waiting(consumer))

    def _follow(self, consumer: Any) -> None:
        """Let the limit of the channel follow each count that Celery asks for: RabbitMQ ends the former by the latter.

        It is AMQP's "global" count, which RabbitMQ keeps for classic queues and calls deprecated:
        https://www.rabbitmq.com/docs/consumer-prefetch
        """
        qos, channel = consumer.qos, consumer.task_consumer.channel
        ask = qos.callback

        def ask_and_limit(prefetch_count: int) -> None:
            ask(prefetch_count=prefetch_count)
            if self._limit:
                channel.basic_qos(0, self._limit, True)

        qos.callback = ask_and_limit

    def _limit_prefetch(self, consumer: Any) -> None:
        """Have the broker count over all queues, and what is worked on since an earlier connection."""
        # By itself it counts for each queue alone since RabbitMQ 4, and what it gave on this connection: a worker on two
        # queues would hold a step of one while it executes a long one of the other.
        places, elsewhere = int(consumer.pool.num_processes), from_old_connection(consumer)
        is_counted = elsewhere or len(consumer.app.amqp.queues.consume_from) > 1
        limit = places - elsewhere if is_counted else None
        if limit == self._limit or (limit is not None and limit < 1):
            # 0 would be no limit to AMQP. A worker without room is not subscribed.
            return
        self._limit = limit
        consumer.task_consumer.channel.basic_qos(0, limit or 0, True)

    def _react_to_backlog(self, consumer: Any, waiting: str) -> None:
        if not waiting or consumer.received != self._received:
            self._unanswered = 0
            return
        self._unanswered += 1
        if self._unanswered == ANSWERS_TO_SUBSCRIBE:
            logger.warning(
                "messages wait and none comes (%s): subscribing anew",
                waiting,
                extra={"action": "queue.resubscribed"},
            )
            self._renew_at = 0.0
        elif self._unanswered == ANSWERS_TO_CONNECT:
            raise ConnectionError(f"messages wait and none comes ({waiting})")

    def _complaint(self) -> str | None:
        return "messages wait and none comes" if self._unanswered > ANSWERS_TO_CONNECT else None


def held(consumer: Any) -> int:
    """The messages that the worker has taken and not answered."""
    # One that a process began just as the connection broke is active alone.
    return len(state.reserved_requests | state.active_requests) + int(consumer.putting_aside)


def from_old_connection(consumer: Any) -> int:
    """Those of them that processes work on and that came over an earlier connection."""
    channel = consumer.task_consumer.channel
    return sum(request.message.channel is not channel for request in tuple(state.active_requests))


def start_unsubscribed(consumer: Any) -> None:
    """Let the event loop begin without a subscription: `subscribe` makes it once a process is free."""
    tasks = consumer.task_consumer
    queues, tasks.queues = tasks.queues, []
    # The loop subscribes to what stands here before it does anything else.
    consumer.call_soon(setattr, tasks, "queues", queues)


def free(consumer: Any) -> bool:
    """Whether the broker should give the worker another message."""
    return held(consumer) < int(consumer.pool.num_processes)


def is_read(consumer: Any) -> bool:
    """Whether the event loop listens to the connection. A call that waits for an answer reads from it too."""
    return bool(consumer.connection.connection.sock.fileno() in consumer.hub.readers)


def subscribe(consumer: Any) -> None:
    """Subscribe to each queue that the worker was started with, or was told to take, unless it is already."""
    tasks = consumer.task_consumer
    for name in list(consumer.app.amqp.queues.consume_from):
        if not tasks.consuming_from(name):
            if name not in {queue.name for queue in tasks.queues}:
                consumer.add_task_queue(name)
            # Returns once the broker has confirmed them all.
            tasks.consume()


def waiting(consumer: Any) -> str:
    """A text on what waits in the worker's queues; empty for nothing."""
    names = list(consumer.app.amqp.queues.consume_from)
    counts = {name: QueueState.of(consumer.connection, name).ready for name in names}
    return ", ".join(f"{count} in {name}" for name, count in counts.items() if count)


def stuck(consumer: Any, now: float) -> str | None:
    """A complaint when a message waits for a process while one is idle."""
    # A process that is still loading the code is not idle.
    if len(state.active_requests) >= len(processes(consumer.pool)) - starting(consumer.pool):
        return None
    for request in tuple(state.reserved_requests):
        waits = now - request.taken_at
        if request not in state.active_requests and waits > STUCK_SECS:
            return f"task {request.id} waits for a process for {waits:.0f} s, though one is idle"
    return None


def install(app: Celery) -> None:
    """Let the workers of an app make sure that they get messages."""
    app.steps["consumer"].add(Subscription)
