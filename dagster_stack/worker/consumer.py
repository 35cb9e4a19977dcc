"""Takes messages for a worker. It puts those aside that the worker can't use; Celery would discard them, or die of them.

Celery's own reaction follows all the same: it tells the sender, counts, and takes the message from its queue.
A message that fails in the main process in a way that Celery does not foresee would end the worker, come again,
and end the next one.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Thread
from typing import Any

from celery import Celery
from celery.worker.consumer.consumer import Consumer as CeleryConsumer
from celery.worker.state import requests
from kombu.exceptions import ContentDisallowed, DecodeError

from dagster_stack.messaging.dead_letters import DeadLetter, publish_dead_letter
from dagster_stack.patches.amqp import tolerate_unreadable
from dagster_stack.patches.celery import queue_of

logger = logging.getLogger(__name__)

#: Seconds that a message rests before it goes back to its queue, because it could not be put aside.
PAUSE_SECS = 5
#: Headers that Celery takes for granted: wrong ones make it fail when it can't refuse the message any more.
HEADERS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "retries": (int, type(None)),
    "timelimit": (list, tuple, type(None)),
    "stamped_headers": (list, type(None)),
    "stamps": (dict, type(None)),
}
#: For what a worker's main process publishes: nobody misses an event or an answer that is lost.
UNCONFIRMED = {"confirm_publish": False}
#: Levels of a message. JSON is read ten times as deep as the pool can pickle it, of which the worker would end.
DEEPEST = 100


class Consumer(CeleryConsumer):
    """Celery's consumer, which puts messages aside that it can't use."""

    #: Messages so far, and those of them that are on their way to the dead letters.
    received = putting_aside = 0
    #: Says whether there is room for a message (subscription.py).
    subscription: Any = None
    #: Why the worker gets no messages, if so: for the watchdog.
    complaint: str | None = None

    def connection_for_read(self, *arguments: Any, **named: Any) -> Any:
        """Celery's own, for messages and answers to questions; no answer waits for the broker's confirmation."""
        found = self.app.connection_for_read(*arguments, transport_options=UNCONFIRMED, **named)
        return self.ensure_connected(found)

    def connection_for_write(self, *arguments: Any, **named: Any) -> Any:
        """Celery's own, for events: none waits for a confirmation, and none is sent while the broker has an alarm.

        The broker reads none of them then. An event loop that waits starts no process in the place of one that died.
        """
        found = self.app.connection_for_write(*arguments, transport_options=UNCONFIRMED, **named)
        connection = self.ensure_connected(found)
        if connection.transport.driver_type == "amqp":
            # RabbitMQ's notices to publishers: https://www.rabbitmq.com/docs/connection-blocked
            amqp = connection.connection
            amqp.on_blocked = lambda _reason: self._let_events(False)
            amqp.on_unblocked = lambda: self._let_events(True)
        return connection

    def _let_events(self, go: bool) -> None:
        if self.event_dispatcher:
            self.event_dispatcher.enabled = go

    def create_task_handler(self, *arguments: Any, **named: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments, **named)

        def on_task_received(message: Any) -> None:
            self.received += 1
            if self.subscription and not self.subscription.takes(message):
                return
            try:
                reason = complaint(message)
                if reason:
                    self._to_dead_letters(message, reason, message.ack)
                else:
                    handle(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception as error:
                if any(request.message is message for request in requests.values()):
                    # Celery has understood it: what failed is not the message.
                    raise
                self._to_dead_letters(message, f"not a message of Celery's: {error!r}", message.ack)
            if self.subscription:
                self.subscription.on_taken(message)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:
        react = super().on_unknown_message
        self._to_dead_letters(message, "not a message of Celery's", lambda: react(body, message))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        react = super().on_unknown_task
        self._to_dead_letters(message, f"this code has no task {exc}", lambda: react(body, message, exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        react = super().on_invalid_task
        self._to_dead_letters(message, f"not a valid task: {exc}", lambda: react(body, message, exc))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        react = super().on_decode_error
        self._to_dead_letters(message, f"it can't be read: {exc}", lambda: react(message, exc))

    def _tell_settled(self) -> None:
        if self.subscription:
            self.subscription.on_settled()

    def _to_dead_letters(self, message: Any, reason: str, react: Callable[[], None]) -> None:
        letter = DeadLetter.of(message, reason, self.hostname)
        letter = replace(letter, queue=queue_of(self.task_consumer, message) or letter.queue)

        def settle() -> None:
            """In the event loop, to which the connection belongs."""
            self.putting_aside -= 1
            try:
                react()
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception:
                logger.warning(
                    "Celery's reaction to a message that was put aside failed",
                    exc_info=True,
                    extra={"action": "message.reaction_failed"},
                )
            if not message.acknowledged:
                message.ack_log_error(logger, self.connection_errors)
            self._tell_settled()

        def give_back() -> None:
            self.putting_aside -= 1
            message.reject_log_error(logger, self.connection_errors, requeue=True)
            self._tell_settled()

        def put_aside() -> None:
            try:
                publish_dead_letter(self.app, letter)
            except Exception as error:
                logger.error(
                    "a message that can't be used (%s) could not be put aside, it goes back to its queue: %s",
                    reason,
                    error,
                    extra={"action": "message.not_dead_lettered"},
                )
                # Until then it keeps one of the worker's places, so it does not come back at once and again.
                time.sleep(PAUSE_SECS)
                self.call_soon(give_back)
            else:
                self.call_soon(settle)

        self.putting_aside += 1
        # Beside the event loop: the broker's confirmation may take a while.
        Thread(target=put_aside, name="put-aside", daemon=True).start()


def complaint(message: Any) -> str | None:
    """What is wrong with a message, for errors that Celery itself finds too late."""
    try:
        body = message.decode()
    except (DecodeError, ContentDisallowed):
        return None
    if is_deeper(body, DEEPEST) or is_deeper(message.headers, DEEPEST):
        return f"it is nested deeper than {DEEPEST} levels"
    if not isinstance(message.headers, Mapping) or "task" not in message.headers:
        # An older protocol, or nobody's.
        return None
    return headers_complaint(message.headers) or body_complaint(body)


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested deeper than that. Without recursion, which Python limits."""
    level = [value]
    for _ in range(levels):
        level = [
            each
            for inner in level
            if isinstance(inner, dict | list | tuple)
            for each in (inner.values() if isinstance(inner, dict) else inner)
        ]
        if not level:
            return False
    return True


def headers_complaint(headers: Mapping[str, Any]) -> str | None:
    wrong = next((name for name, kinds in HEADERS.items() if not isinstance(headers.get(name), kinds)), None)
    limits = headers.get("timelimit")
    if not wrong and limits:
        numbers = len(limits) == 2 and all(isinstance(each, int | float | None) for each in limits)
        wrong = None if numbers else "timelimit"
    return f"its header {wrong} is {headers.get(wrong)!r}" if wrong else None


def body_complaint(body: Any) -> str | None:
    # The older protocol's body is a mapping, which Celery takes as well.
    if isinstance(body, Mapping) and "args" in body:
        return None
    match body:
        case [[*_], {}, {} | None]:
            return None
    return "its body is not made of positional, named and further arguments"


def install(app: Celery) -> None:
    """Let the workers of an app put aside what they can't use."""
    app.conf.worker_consumer = f"{Consumer.__module__}:{Consumer.__name__}"
    tolerate_unreadable()
