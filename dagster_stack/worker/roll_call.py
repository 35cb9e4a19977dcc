"""What a worker says of itself when it is asked, by Celery's remote control: its code, its queues, how busy it is."""

from typing import Any

from celery import Celery
from celery.worker import state as worker_state
from celery.worker.control import inspect_command

from dagster_stack.broker.link import ANSWER_SECS
from dagster_stack.broker.publishing import confirmed_producer
from dagster_stack.code_version import code_version

#: The command's name on the wire.
ROLL_CALL = "roll_call"


def roll_call(state: Any, **_: Any) -> dict[str, Any]:
    """Answered by the main process, which has time while all its processes work."""
    return {
        "code": code_version(),
        "queues": sorted(state.app.amqp.queues.consume_from),
        "processes": state.consumer.pool.num_processes,
        "busy": len(worker_state.active_requests),
    }


def workers_of(app: Celery, queue: str, code: str | None = None) -> list[str]:
    """The workers that take from a queue, also those too busy now; with `code`, those that have it.

    Waits for all answers, a second. Raises BrokerUnreachable.
    """
    with confirmed_producer(app) as producer:
        replies = app.control.broadcast(
            ROLL_CALL, reply=True, timeout=ANSWER_SECS, connection=producer.connection
        )
    return [
        name
        for reply in replies or ()
        for name, answer in reply.items()
        if queue in answer.get("queues", ()) and code in (None, answer.get("code"))
    ]


def install() -> None:
    """Let the workers of this process answer."""
    inspect_command(name=ROLL_CALL)(roll_call)
