"""Single messages, sent and confirmed on a connection of the process's pool, outside of a run's own link."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from kombu.exceptions import OperationalError

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.messaging.run_connection import (
    CONFIRM_TIMEOUT_SECS,
    CONNECT_TIMEOUT_SECS,
    ONE_MORE_TRY,
    bound_waits,
)

if TYPE_CHECKING:
    from dagster_stack.messaging.messages import RunMessage, StepMessage


@contextmanager
def confirmed_producer(app: Celery) -> Iterator[Any]:
    """A producer of the pool, with a time limit on each answer; raises BrokerUnreachable."""
    connection = app.producer_pool.connections.connection
    try:
        with app.producer_pool.acquire(block=True, timeout=CONNECT_TIMEOUT_SECS) as producer:
            bound_waits(producer.connection)
            yield producer
    except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors) as error:
        raise BrokerUnreachable(f"The broker does not answer: {error}") from error


def send(app: Celery, task: str, message: "RunMessage | StepMessage", **options: Any) -> None:
    """Send a message with Celery's options; returns when the broker has it. Raises BrokerUnreachable."""
    with confirmed_producer(app) as producer:
        app.send_task(
            task,
            kwargs={"message": message.to_json()},
            task_id=message.task_id,
            producer=producer,
            # A connection that died since it was used last is noticed by sending on it.
            retry=True,
            retry_policy=ONE_MORE_TRY,
            confirm_timeout=CONFIRM_TIMEOUT_SECS,
            ignore_result=True,
            argsrepr=message.run_id,
            **options,
        )


def source_queue(task: Task) -> str:
    """The name of the queue that a task's message came from: AMQP tells only its routing key."""
    key = str((task.request.delivery_info or {}).get("routing_key", ""))
    return next((queue.name for queue in task.app.amqp.queues.values() if queue.routing_key == key), key)


def queue_state(app: Celery, queue: str) -> QueueState:
    """What the broker knows of a queue. Raises BrokerUnreachable."""
    with confirmed_producer(app) as producer:
        return QueueState.of(producer.connection, queue)
