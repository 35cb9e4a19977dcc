"""Proof that a worker gets messages. One that answers pings may have lost its subscription, and wait for ever.

A worker takes no message that would wait behind what it works on. The broker counts for each queue alone, and only what it gave
to the present subscription. That is enough for a worker that had nothing when it subscribed to its one queue. Any other worker, on
several queues or after a reconnect, counts by itself: while all its processes are busy it has no subscription, each new one allows
as many messages as there is room for, and what several queues give beyond that goes back to them at once.

Three things are looked at: that the broker confirms the subscription anew, that nothing waits in a queue for a
worker with a free process, and that no message that was taken waits for a process that is idle. The cures are a new
subscription, a new connection, and in the end the watchdog's exit. A worker that is told to rest (respite.py) has no
subscription. All of it happens in the worker's event loop, to
which the connection belongs.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.worker import state

from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.patches.celery import forget_tags, processes, queue_of, starting
from dagster_stack.timing import BROKER_ANSWER_SECS
from dagster_stack.worker import request, respite
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
        self._consumer = consumer
        #: Whether the broker's count is right: of one queue, for a worker that had nothing when it subscribed.
        self._is_counted = True
        #: Messages beyond what there is room for, until they are given back.
        self._surplus: list[Any] = []
        #: The queue that a message came from last: another one is asked first.
        self._served: str | None = None
        #: What the present subscription allows; what was asked for last on this connection, by this and by Celery.
        self._allowed = 0
        self._asked: tuple[int, int] | None = None
        #: Tags of subscriptions whose last messages may still be on their way.
        self._ended: list[str] = []
        self._is_due = False
        #: Answers in a row that something waits, while nothing comes; also over connections.
        self._unanswered = 0
        #: Whether the worker has no subscription, and nothing of a former one is on its way.
        self.is_at_rest = False

    def start(self, consumer: Any) -> None:
        if consumer.hub is None or consumer.connection.transport.driver_type != "amqp":
            # The folder of the embedded mode knows no subscriptions.
            return
        # Whatever is asked on this connection: without an answer the event loop would stand still.
        consumer.connection.connection.transport.sock.settimeout(BROKER_ANSWER_SECS)
        # What was not given back yet went back with its connection.
        self._surplus, self._ended, self._is_due, self._asked = [], [], False, None
        self.is_at_rest = False
        self._is_counted = not held(consumer) and is_on_one_queue(consumer) and not respite.seconds_left()
        if not self._is_counted:
            start_unsubscribed(consumer)
            self._balance_soon()
        consumer.subscription = self
        request.settled.add(self.on_settled)
        now = self._clock()
        self._renew_at, self._ask_at = now + RENEWAL_SECS, now + QUESTION_SECS
        self._timer = consumer.timer.call_repeatedly(LOOK_SECS, self.look, (consumer,))

    def stop(self, consumer: Any) -> None:
        request.settled.discard(self.on_settled)
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
        if respite.seconds_left():
            self._rest(consumer)
            return
        if not free(consumer):
            return
        if not is_read(consumer):
            raise ConnectionError("the event loop does not read the connection to the broker")
        if not is_on_one_queue(consumer) if self._is_counted else room(consumer) > self._allowed:
            self._balance()
        if now >= self._renew_at and not held(consumer):
            self._renew_at = now + RENEWAL_SECS
            # Messages that are delivered before the broker confirms that are taken as usual.
            consumer.task_consumer.cancel()
        if free(consumer):
            self._subscribe()
        if now >= self._ask_at:
            self._ask_at = now + QUESTION_SECS
            self._react_to_backlog(consumer, waiting(consumer))

    def _rest(self, consumer: Any) -> None:
        """End all subscriptions. The broker's answer comes behind all that it has sent for them."""
        if self.is_at_rest:
            return
        self._ended += rest(consumer)
        consumer.task_consumer.channel.basic_qos(0, places(consumer), False)
        self._forget_ended(consumer)
        self._asked, self._unanswered, self.is_at_rest = None, 0, True

    # --- never more than there is room for ------------------------------------------------------------

    def takes(self, message: Any) -> bool:
        """Whether there is room for a message; else it is given back as soon as its queues rest."""
        if self._is_counted or free(self._consumer):
            return True
        self._surplus.append(message)
        self._balance_soon()
        return False

    def on_taken(self, message: Any) -> None:
        if not self._is_counted:
            self._served = queue_of(self._consumer.task_consumer, message) or self._served
            if not free(self._consumer):
                self._balance_soon()

    def on_settled(self) -> None:
        """A message is answered: there may be room."""
        if not self._is_counted:
            self._balance_soon()

    def _balance_soon(self) -> None:
        """In the event loop, behind what is to be sent before: a call from within an answer of the broker could meet another."""
        if not self._is_due:
            self._is_due = True
            self._consumer.call_soon(self._balance)

    def _balance(self) -> None:
        """Rest, give back what was too much, and subscribe for as many messages as there is room for now."""
        self._is_due = False
        consumer = self._consumer
        if consumer.task_consumer is None:
            return
        self._ended += rest(consumer)
        surplus, self._surplus = self._surplus, []
        for message in surplus:
            message.reject_log_error(logger, consumer.connection_errors, requeue=True)
        if consumer.blueprint.state == bootsteps.RUN and not is_leaving():
            self._subscribe()

    def _subscribe(self) -> None:
        """Subscribe to what is not yet subscribed to, if there is room."""
        consumer = self._consumer
        missing = [name for name in wanted(consumer) if not consumer.task_consumer.consuming_from(name)]
        if not free(consumer) or not missing or respite.seconds_left():
            return
        self.is_at_rest = False
        self._allowed = room(consumer)
        is_counted = not held(consumer) and is_on_one_queue(consumer)
        # Celery's own count is above the places while tasks wait for their time.
        count = max(self._allowed, consumer.qos.value) if is_counted else self._allowed
        # Holds for each subscription from now on, until Celery or this asks for another.
        if self._asked != (count, consumer.qos.prev):
            self._asked = count, consumer.qos.prev
            consumer.task_consumer.channel.basic_qos(0, count, False)
        received, self._is_counted = consumer.received, False
        subscribe(consumer, last=self._served)
        # What came meanwhile is of a former subscription.
        self._is_counted = is_counted and consumer.received == received
        self._forget_ended(consumer)

    def _forget_ended(self, consumer: Any) -> None:
        """The broker has answered since, so it gives nothing for former subscriptions any more."""
        for tag in self._ended:
            forget(consumer.task_consumer.channel, tag)
        self._ended = []

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


def places(consumer: Any) -> int:
    """How many messages the worker can work on at once."""
    return int(consumer.pool.num_processes)


def room(consumer: Any) -> int:
    """How many more messages it may take."""
    return places(consumer) - held(consumer)


def wanted(consumer: Any) -> list[str]:
    """The queues that the worker was started with, or was told to take."""
    return list(consumer.app.amqp.queues.consume_from)


def is_on_one_queue(consumer: Any) -> bool:
    return len(wanted(consumer)) == 1


def rest(consumer: Any) -> list[str]:
    """End all subscriptions without a wait for the broker, which does it before whatever is sent next; gives their tags."""
    tags = forget_tags(consumer.task_consumer)
    for tag in tags:
        consumer.task_consumer.channel.basic_cancel(tag, nowait=True)
    return tags


def forget(channel: Any, tag: str) -> None:
    """What a channel keeps of a subscription; it does so by itself where it waits for the end."""
    for callbacks in (channel.callbacks, channel.cancel_callbacks):
        callbacks.pop(tag, None)


def start_unsubscribed(consumer: Any) -> None:
    """Let the event loop begin without a subscription: `subscribe` makes it once a process is free."""
    tasks = consumer.task_consumer
    queues, tasks.queues = tasks.queues, []
    # The loop subscribes to what stands here before it does anything else.
    consumer.call_soon(setattr, tasks, "queues", queues)


def free(consumer: Any) -> bool:
    """Whether the broker should give the worker another message."""
    return room(consumer) > 0


def is_read(consumer: Any) -> bool:
    """Whether the event loop listens to the connection. A call that waits for an answer reads from it too."""
    return bool(consumer.connection.connection.sock.fileno() in consumer.hub.readers)


def subscribe(consumer: Any, last: str | None) -> None:
    """Subscribe to each queue that the worker wants, unless it is already; to one of them behind all others."""
    tasks = consumer.task_consumer
    for name in wanted(consumer):
        if not tasks.consuming_from(name) and name not in {queue.name for queue in tasks.queues}:
            consumer.add_task_queue(name)
    tasks.queues = sorted(tasks.queues, key=lambda queue: bool(queue.name == last))
    # Returns once the broker has confirmed them all.
    tasks.consume()


def waiting(consumer: Any) -> str:
    """A text on what waits in the worker's queues; empty for nothing."""
    names = wanted(consumer)
    counts = {name: QueueState.of(consumer.connection, name).ready for name in names}
    return ", ".join(f"{count} in {name}" for name, count in counts.items() if count)


def stuck(consumer: Any, now: float) -> str | None:
    """A complaint when a message waits for a process while one is idle."""
    # A process that is still loading the code is not idle.
    if len(state.active_requests) >= len(processes(consumer.pool)) - starting(consumer.pool):
        return None
    for each in tuple(state.reserved_requests):
        waits = now - each.taken_at
        if each not in state.active_requests and waits > STUCK_SECS:
            return f"task {each.id} waits for a process for {waits:.0f} s, though one is idle"
    return None


def install(app: Celery) -> None:
    """Let the workers of an app make sure that they get messages."""
    app.steps["consumer"].add(Subscription)
