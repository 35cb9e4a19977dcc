"""Messages that Celery delivers to a task, and what of them is on the broker afterwards: in this process's memory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from celery import Celery
from kombu.transport.memory import Channel, Transport
from kombu.transport.virtual import Base64

from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.dead_letters import QUEUE as DEAD_LETTERS
from dagster_stack.messaging.task_names import STEP_TASK
from dagster_stack.settings import CeleryConfig, Settings
from tests.unit.clock import Clock


def memory_app(home: Path) -> Celery:
    """An app on an empty broker in this process's memory."""
    empty_the_memory()
    settings = Settings.from_environment({"DAGSTER_HOME": str(home)})
    return make_app(CeleryConfig(broker="memory://localhost", backend="disabled://"), settings)


def empty_the_memory() -> None:
    # All connections of a process share one broker, which forgets no binding of a deleted queue.
    Channel.queues.clear()
    Transport.global_state.clear()


def refuse_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker takes none from now on, and the pause before a message goes back passes at once."""

    def refused(*_: Any) -> NoReturn:
        raise ConnectionResetError("refused")

    monkeypatch.setattr("dagster_stack.pool.delivery.dead_letter_task", refused)
    monkeypatch.setattr("dagster_stack.pool.delivery.time", Clock())


class Delivery:
    """What of a Celery task its function uses when a message was delivered to it.

    In a real worker `task.request` belongs to the message: `hostname` is the worker's node name, and
    `delivery_info` holds the routing key, on RabbitMQ "dagster.<task>" for the default queue's stock tasks.
    """

    def __init__(
        self, app: Celery, name: str = STEP_TASK, hostname: str = "worker@here", queue: str = "dagster"
    ) -> None:
        self.app = app
        self.name = name
        self.request = SimpleNamespace(
            hostname=hostname,
            id="a-task",
            shadow="a_job: a_step",
            delivery_info={"routing_key": queue, "priority": 7},
        )


def waiting(queue: str) -> list[dict[str, Any]]:
    """The messages in a queue: headers, properties, and under "body" what was sent."""
    found = []
    messages = Channel.queues.get(queue)
    for raw in list(messages.queue) if messages else []:
        body = raw["body"]
        if raw["properties"].get("body_encoding") == "base64":
            body = Base64().decode(body)
        found.append({**raw, "body": json.loads(body)})
    return found


def dead_letters() -> list[dict[str, Any]]:
    """The dead letters, the oldest first."""
    return [message["body"] for message in waiting(DEAD_LETTERS.name)]


def delayed(queue: str = "dagster") -> list[dict[str, Any]]:
    """The messages of this stack that come back to a queue after a pause."""
    return [message["body"][1]["message"] for message in waiting(f"{queue}.delayed")]
