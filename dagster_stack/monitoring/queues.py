"""What the broker says of its queues, by RabbitMQ's management API and a user that may only look."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from dagster_stack.messaging.management import QueueDepth


def figures(depths: Sequence[QueueDepth]) -> Iterator[Metric]:
    """Of the queues in which steps and runs wait."""
    messages = GaugeMetricFamily(
        "dagster_queue_messages",
        "Messages that wait, and those that a worker holds.",
        labels=["queue", "state"],
    )
    consumers = GaugeMetricFamily("dagster_queue_consumers", "Workers on a queue.", labels=["queue"])
    for depth in depths:
        messages.add_metric([depth.name, "ready"], depth.ready)
        messages.add_metric([depth.name, "in_flight"], depth.unacked)
        consumers.add_metric([depth.name], depth.consumers)
    yield messages
    yield consumers


def alarms(found: Mapping[str, bool]) -> Iterator[Metric]:
    """Of the broker as a whole."""
    family = GaugeMetricFamily(
        "dagster_broker_alarm", "1 while the broker takes no messages, by what is short.", labels=["kind"]
    )
    for kind, is_on in found.items():
        family.add_metric([kind], is_on)
    yield family
