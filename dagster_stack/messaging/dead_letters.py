"""Messages that no worker can use: put aside in a queue of their own, with the reason, for people to see."""

import base64
import json
import logging
import reprlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from celery import Celery, Task
from kombu.connection import Connection
from kombu.entity import Queue

from dagster_stack.logs.context import bound
from dagster_stack.messaging.run_connection import CONFIRM_TIMEOUT_SECS, CONNECT_TIMEOUT_SECS, bound_waits

logger = logging.getLogger(__name__)

#: The most that are kept; the oldest give way.
MOST = 10_000
QUEUE = Queue("dead-letters", durable=True, queue_arguments={"x-max-length": MOST})
#: Bytes of a message that are kept, and characters of the reason: other programs choose them, and the broker refuses
#: a letter that is too large.
KEPT_BYTES = 100_000
KEPT_CHARACTERS = 1000


@dataclass(frozen=True)
class DeadLetter:
    """A message that was put aside."""

    reason: str
    #: The queue that it came from, and the worker that could not use it.
    queue: str
    worker: str
    #: Celery's name for what was to be done, and its id; empty for a message that Celery did not send.
    task: str = ""
    task_id: str = ""
    content_type: str = ""
    body: str = ""
    #: Seconds since 1970.
    at: float = field(default_factory=time.time)

    @staticmethod
    def of(message: Any, reason: str, worker: str) -> "DeadLetter":
        """A message as kombu gives it."""
        headers: Mapping[str, Any] = message.headers if isinstance(message.headers, Mapping) else {}
        return DeadLetter(
            reason=reason,
            queue=str((message.delivery_info or {}).get("routing_key", "")),
            worker=worker,
            task=_text(headers.get("task", "")),
            task_id=_text(headers.get("id", "")),
            content_type=str(message.content_type or ""),
            body=_readable(message.body),
        )


def publish_dead_letter(app: Celery, letter: DeadLetter) -> None:
    """Put a message aside; returns when the broker has it. Raises what the connection raises."""
    letter = _cut(letter)
    with bound(task=letter.task_id):
        logger.error(
            "put aside in %s: %s %s: %s",
            QUEUE.name,
            letter.task or "a message",
            letter.task_id,
            letter.reason,
            extra={"action": "message.dead_lettered"},
        )
    with app.producer_pool.acquire(block=True, timeout=CONNECT_TIMEOUT_SECS) as producer:
        bound_waits(producer.connection)
        # Each time: the queue may have been deleted, and without it the broker would drop the letter.
        QUEUE(producer.channel).queue_declare()
        producer.publish(
            json.dumps(asdict(letter)), exchange="", routing_key=QUEUE.name,
            content_type="application/json", content_encoding="utf-8", delivery_mode="persistent",
            confirm_timeout=CONFIRM_TIMEOUT_SECS,
        )  # fmt: skip


def dead_letter_task(task: Task, content: Any, reason: str) -> None:
    """The same for a message that a task got."""
    request = task.request
    letter = DeadLetter(
        reason=reason,
        queue=str((request.delivery_info or {}).get("routing_key", "")),
        worker=str(request.hostname or ""),
        task=str(task.name or ""),
        task_id=str(request.id or ""),
        content_type="application/json",
        body=_readable(json.dumps(content, default=str)),
    )
    run = content.get("run_id") if isinstance(content, Mapping) else None
    with bound(run=run if isinstance(run, str) else ""):
        publish_dead_letter(task.app, letter)


def letters(connection: Connection, limit: int = MOST) -> Iterator[DeadLetter]:
    """What was put aside, the oldest first. It stays there."""
    # Unacknowledged messages go back to their places when the channel ends.
    with connection.channel() as channel:
        queue = QUEUE(channel)
        queue.queue_declare()
        for _ in range(limit):
            message = queue.get(no_ack=False)
            if message is None:
                return
            try:
                yield DeadLetter(**json.loads(message.body))
            except (ValueError, TypeError):
                yield DeadLetter.of(message, "another program put it here", "")


def _text(header: Any) -> str:
    # Anything else may be nested so deeply that Python can't write it.
    return header if isinstance(header, str) else reprlib.repr(header)


def _cut(letter: DeadLetter) -> DeadLetter:
    """The same letter with texts of bounded lengths; its body is already."""
    cut: dict[str, Any] = {
        name: f"{text[:KEPT_CHARACTERS]}… ({len(text)} characters)"
        for name, text in asdict(letter).items()
        if isinstance(text, str) and name != "body" and len(text) > KEPT_CHARACTERS
    }
    return replace(letter, **cut)


def _readable(body: Any) -> str:
    data = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else bytes(body or b"")
    kept = data[:KEPT_BYTES]
    try:
        data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(kept).decode()
    # Its end may lie within a character.
    return kept.decode(errors="ignore")
