"""Messages that their process can't use now, but another process may: they come again after a pause."""

import time
from dataclasses import replace

from celery import Task
from kombu.entity import Queue

from dagster_stack.messaging.messages import RunMessage, StepMessage
from dagster_stack.messaging.publishing import send, source_queue
from dagster_stack.timing import DELAY_SECS

#: Seconds without use after which the broker removes a queue of delayed messages.
UNUSED_SECS = 3600


def delay(task: Task, message: StepMessage | RunMessage, refused: bool) -> None:
    """Send a task's message to its queue again, after a pause. The first time that it is refused is noted in it."""
    if refused and not message.refused_at:
        message = replace(message, refused_at=time.time())
    queue = source_queue(task)
    hard, soft = getattr(task.request, "timelimit", None) or (None, None)
    waiting = Queue(
        delayed(queue),
        durable=True,
        queue_arguments={
            "x-message-ttl": DELAY_SECS * 1000,
            "x-expires": UNUSED_SECS * 1000,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": queue,
        },
    )
    # The queue itself and not an exchange with its name as routing key: without a queue Celery would take the default
    # one. It has no exchange, so that Celery binds it to none when it declares it.
    send(
        task.app,
        task.name,
        message,
        queue=waiting,
        priority=(task.request.delivery_info or {}).get("priority"),
        shadow=getattr(task.request, "shadow", None),
        time_limit=hard,
        soft_time_limit=soft,
    )


def delayed(queue: str) -> str:
    """The queue in which messages wait that go back to this one."""
    return f"{queue}.delayed"


def refused_for(message: StepMessage | RunMessage) -> float:
    """Seconds since a process with other code first refused it."""
    return time.time() - message.refused_at if message.refused_at else 0.0
