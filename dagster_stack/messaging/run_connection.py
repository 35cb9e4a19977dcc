"""A run's link to the broker: it sends steps, listens for wake-ups, and knows when the broker is away."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from celery import Celery
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.forks import keep_from_children
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.messaging.task_names import STEP_TASK
from dagster_stack.timing import HEARTBEAT_SECS

if TYPE_CHECKING:
    from dagster_stack.messaging.messages import StepMessage

logger = logging.getLogger(__name__)

#: Wake-ups go through this exchange, by the run's id; a run listens on a queue that ends with its connection.
WAKEUPS = Exchange("dagster.wakeup", type="direct", durable=True)
#: The consumer of a run's wake-ups on its connection.
CONSUMER = "run"
#: Seconds that connecting, and any answer, may take before the broker counts as away.
CONNECT_TIMEOUT_SECS = 5
#: Seconds that the broker gets to confirm a message: a paused one, or one that is out of disk, never does.
CONFIRM_TIMEOUT_SECS = 5
#: A connection that died since the last wake-up is noticed by sending on it.
ONE_MORE_TRY = {"max_retries": 1, "interval_start": 0}
#: Seconds that workers get to answer a question.
ANSWER_SECS = 1
#: Seconds between two tries to reach a broker that is away.
RETRY_SECS = 1
#: Seconds for which a process sends no wake-up after the broker has said that it takes none.
ALARM_PAUSE_SECS = 5
ALARM = "The broker takes no messages: it is short of disk or of memory (`docker compose logs rabbitmq` says of which)."


class Link(Protocol):
    """A run sends its steps through it, and waits on it for news of them."""

    #: Connections so far: a broker that was away between two may have lost what it had confirmed.
    connections: int

    def send(self, message: "StepMessage", job: str, queue: str, priority: int) -> None: ...

    def wait(self, timeout: float) -> bool: ...

    def queue_state(self, queue: str) -> QueueState: ...

    def close(self) -> None: ...


class RunConnection:
    """One connection for one run. Every call raises BrokerUnreachable while the broker is away."""

    def __init__(self, app: Celery, run_id: str) -> None:
        self._app = app
        self._run_id = run_id
        self._connection: Connection | None = None
        self._queue: Queue | None = None
        self._producer: Any = None
        self.connections = 0
        self._woken = False
        self._next_try = 0.0
        self._beat_at = 0.0
        #: Whether RabbitMQ has said that it takes nothing, and that this is over.
        self._has_alarm = False
        self._alarm_is_over = False

    def send(self, message: "StepMessage", job: str, queue: str, priority: int) -> None:
        """Hand a step to its queue; returns when the broker has confirmed it."""
        with self._recovering() as connection:
            self._heed_alarm(connection)
            self._app.send_task(
                STEP_TASK,
                kwargs={"message": message.to_json()},
                task_id=message.task_id,
                queue=queue,
                priority=priority,
                producer=self._producer,
                retry=False,
                confirm_timeout=CONFIRM_TIMEOUT_SECS,
                ignore_result=True,
                shadow=f"{job}: {message.step_key}",
                time_limit=self._app.conf.task_time_limit,
                soft_time_limit=self._app.conf.task_soft_time_limit,
                argsrepr=message.run_id,
                kwargsrepr=f"attempt {message.attempt}",
            )

    def wait(self, timeout: float) -> bool:
        """Whether a wake-up came within `timeout` seconds (below 5, for the heartbeat); takes all that wait."""
        until = time.monotonic() + timeout
        with self._recovering() as connection:
            while not self._woken and (left := until - time.monotonic()) > 0:
                self._beat(connection)
                with suppress(socket.timeout, TimeoutError):
                    connection.drain_events(timeout=left)
            with suppress(socket.timeout, TimeoutError):
                while self._woken:
                    connection.drain_events(timeout=0.0001)
        woken, self._woken = self._woken, False
        return woken

    def queue_state(self, queue: str) -> QueueState:
        """What the broker knows of a queue; one that does not exist is empty and has no consumer."""
        with self._recovering() as standing:
            connection = self._heed_alarm(standing)
            state = QueueState.of(connection, queue)
            if state.ready and connection.transport.driver_type == "filesystem":
                # Folders don't know who looks into them.
                replies = self._app.control.inspect(timeout=ANSWER_SECS, limit=1).active_queues() or {}
                consumers = sum(queue == entry["name"] for found in replies.values() for entry in found)
                return QueueState(state.ready, consumers)
            return state

    def connect(self) -> None:
        """Open the link, or leave an open one as it is."""
        with self._recovering():
            pass

    def close(self) -> None:
        """End the connection, and with it the queue for wake-ups."""
        if self._has_alarm:
            self._drop()
        connection, queue = self._connection, self._queue
        self._connection = self._queue = self._producer = None
        if connection:
            with suppress(*self._errors(connection)):
                if queue:
                    queue.cancel(CONSUMER)
                    # Not every transport ends an exclusive queue with its connection.
                    queue.delete()
            with suppress(*self._errors(connection)):
                connection.close()

    def _drop(self) -> None:
        """Forget a connection that failed, without a word to a broker that may not answer."""
        connection = self._connection
        self._connection = self._queue = self._producer = None
        self._has_alarm = self._alarm_is_over = False
        if connection:
            connection.collect(socket_timeout=0.1)

    @contextmanager
    def _recovering(self) -> Iterator[Connection]:
        connection = self._connection
        try:
            if connection is None:
                connection = self._open()
            yield connection
        except self._errors(connection) as error:
            self._drop()
            self._next_try = time.monotonic() + RETRY_SECS
            raise BrokerUnreachable(f"The broker does not answer: {error}") from error

    def _open(self) -> Connection:
        if time.monotonic() < self._next_try:
            raise BrokerUnreachable("The broker did not answer a moment ago.")
        connection = self._app.connection_for_write(
            heartbeat=HEARTBEAT_SECS, connect_timeout=CONNECT_TIMEOUT_SECS
        )
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_TIMEOUT_SECS)
            bound_waits(connection)
            self._listen_for_alarms(connection)
            channel = connection.default_channel
            queue = Queue("", WAKEUPS, routing_key=self._run_id, durable=False, exclusive=True,
                          auto_delete=True, max_length=1)(channel)  # fmt: skip
            queue.declare()
            queue.consume(consumer_tag=CONSUMER, callback=self._wake, no_ack=True)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
            self.connections += 1
        except BaseException:
            connection.collect(socket_timeout=0.1)
            raise
        self._connection, self._queue = connection, queue
        # A step that ended before the queue was there could not wake the run.
        self._woken = True
        return cast(Connection, connection)

    def _listen_for_alarms(self, connection: Connection) -> None:
        """RabbitMQ's notices to publishers: https://www.rabbitmq.com/docs/connection-blocked"""
        if connection.transport.driver_type == "amqp":
            amqp = connection.connection
            amqp.on_blocked, amqp.on_unblocked = self._on_blocked, self._on_unblocked

    def _on_blocked(self, _reason: str) -> None:
        # py-amqp's reason is always the same. Out of whatever waits for an answer: with a heartbeat now and then it would
        # wait for ever.
        self._has_alarm = True
        raise BrokerUnreachable(ALARM)

    def _on_unblocked(self) -> None:
        self._alarm_is_over = True

    def _heed_alarm(self, connection: Connection) -> Connection:
        """The connection to talk on. While the broker has an alarm, it reads nothing on one that has sent."""
        if self._has_alarm and not self._alarm_is_over:
            with suppress(socket.timeout, TimeoutError):
                while True:
                    connection.drain_events(timeout=0.0001)
        if self._alarm_is_over:
            # What was sent into the alarm may be confirmed now: it must not pass for another message's.
            self._drop()
            return self._open()
        if self._has_alarm:
            raise BrokerUnreachable(ALARM)
        return connection

    def _wake(self, _message: Any) -> None:
        self._woken = True

    def _beat(self, connection: Connection) -> None:
        """AMQP's heartbeat, of which py-amqp wants to be reminded twice an interval."""
        if connection.supports_heartbeats and time.monotonic() > self._beat_at:
            self._beat_at = time.monotonic() + HEARTBEAT_SECS / 2
            connection.heartbeat_check(rate=2)

    @staticmethod
    def _errors(connection: Connection | None) -> tuple[type[BaseException], ...]:
        known = (*connection.connection_errors, *connection.channel_errors) if connection else ()
        return (OperationalError, OSError, *known)


def bound_waits(connection: Connection) -> None:
    """Let no call wait for ever for a broker that is frozen, or behind a cut network: it raises TimeoutError.

    What is used from here on is this process's alone: py-amqp shuts down what it collects, also in a forked child.
    """
    if connection.transport.driver_type == "amqp":
        # The pool closes a connection after an error, and such a one stays closed until it is told to connect.
        transport = connection.connect().transport
        # None: it ended meanwhile, and whoever uses it next is told.
        if transport is not None:
            transport.sock.settimeout(CONNECT_TIMEOUT_SECS)
            keep_from_children(transport.sock)


@contextmanager
def no_wait_in_alarm(connection: Connection) -> Iterator[None]:
    """Whoever waits for a confirmation gets BrokerUnreachable as soon as the broker says that it takes nothing."""

    def on_blocked(_reason: str) -> None:
        _Alarm.until = time.monotonic() + ALARM_PAUSE_SECS
        raise BrokerUnreachable(ALARM)

    amqp = connection.connect() if connection.transport.driver_type == "amqp" else None
    if amqp is None:
        yield
        return
    amqp.on_blocked = on_blocked
    try:
        yield
    except BrokerUnreachable:
        # What was sent into the alarm may be confirmed later: it must not pass for another message's.
        connection.collect(socket_timeout=0.1)
        raise
    finally:
        amqp.on_blocked = None


class _Alarm:
    """This process knows of an alarm of the broker until then, by the monotonic clock."""

    until = 0.0


def wake_up(app: Celery, run_id: str) -> None:
    """Tell a run to look at its event log. Nothing depends on it: a lost wake-up costs the run a slow look."""
    try:
        if time.monotonic() < _Alarm.until:
            raise BrokerUnreachable(ALARM)
        with (
            app.producer_pool.acquire(block=True, timeout=CONNECT_TIMEOUT_SECS) as producer,
            no_wait_in_alarm(producer.connection),
        ):
            bound_waits(producer.connection)
            producer.publish(
                b"", exchange=WAKEUPS, routing_key=run_id, declare=[WAKEUPS], delivery_mode="transient",
                content_type="application/octet-stream", content_encoding="binary", retry=True, retry_policy=ONE_MORE_TRY,
                confirm_timeout=CONFIRM_TIMEOUT_SECS,
            )  # fmt: skip
    except Exception as error:
        # Whatever it is: the step that has just ended must not fail for it.
        logger.info(
            "run %s was not woken, it looks by itself: %s", run_id, error, extra={"action": "run.not_woken"}
        )
