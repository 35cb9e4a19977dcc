"""Which workers are there: asked of them by Celery's remote control; `worker/roll_call` answers."""

from celery import Celery

from dagster_stack.broker.link import ANSWER_SECS
from dagster_stack.broker.publishing import confirmed_producer

#: The command's name on the wire.
ROLL_CALL = "roll_call"


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
