"""Nothing waits behind a running step, also on a worker that takes from several queues.

A worker takes as many messages as it has processes. Since RabbitMQ 4, Celery counts that for each queue by itself:
a worker on two queues would hold a step of one while it executes a long one of the other. Counting all of a
worker's queues together (AMQP's "global" prefetch) is what RabbitMQ still does for classic queues, and calls
deprecated; so it is asked for only where there are several. https://www.rabbitmq.com/docs/consumer-prefetch
"""

from typing import Any

from celery.worker.consumer.tasks import Tasks

celerys_choice = Tasks.qos_global


def over_all_queues(self: Tasks, consumer: Any) -> bool:
    """Whether the worker's queues share one prefetch count."""
    return len(consumer.app.amqp.queues.consume_from) > 1 or celerys_choice(self, consumer)


def install() -> None:
    """Make this process's worker count over all its queues."""
    Tasks.qos_global = over_all_queues
