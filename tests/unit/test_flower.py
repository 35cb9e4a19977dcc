"""Flower as a service: what it counts does not grow with the steps."""

import asyncio
from types import SimpleNamespace

import pytest
from flower import options  # noqa: F401 (defines what PrometheusMetrics reads)
from flower.events import PrometheusMetrics, get_prometheus_metrics
from flower.utils.broker import RabbitMQ
from prometheus_client import REGISTRY

from dagster_stack.services.flower import bound_figures, decoded_login, name_broker_api


def test_flower_counts_workers_and_no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given Flower as the service has it
    monkeypatch.setattr(PrometheusMetrics, "observe_task", PrometheusMetrics.observe_task)
    bound_figures()
    metrics = get_prometheus_metrics()

    # When a step's task and a worker show themselves
    event = {"type": "task-received", "name": "job: step"}
    metrics.observe_task("dagster@1", event, SimpleNamespace(eta=None, received=1, name="job: step"))
    metrics.observe_worker("dagster@1", {"type": "worker-heartbeat", "active": 3})

    # Then there are figures of the worker, and none of the task
    labels = {"worker": "dagster@1"}
    assert REGISTRY.get_sample_value("flower_worker_number_of_currently_executing_tasks", labels) == 3
    assert not [s for family in REGISTRY.collect() for s in family.samples if "task" in s.labels]


def test_flower_gets_the_login_of_the_management_in_an_address() -> None:
    environment = {
        "DAGSTER_STACK_BROKER_API_URL": "https://mq.example.com:15671/", "DAGSTER_STACK_BROKER_API_USER": "monitor",
        "DAGSTER_STACK_BROKER_API_PASSWORD": "a@b:/#%",
    }  # fmt: skip

    name_broker_api(environment)

    assert environment["FLOWER_BROKER_API"] == "https://monitor:a%40b%3A%2F%23%25@mq.example.com:15671/api/"


def test_flower_keeps_an_address_that_somebody_has_set() -> None:
    environment = {
        "DAGSTER_STACK_BROKER_API_URL": "http://x", "DAGSTER_STACK_BROKER_API_PASSWORD": "p", "FLOWER_BROKER_API": "http://y",
    }  # fmt: skip

    name_broker_api(environment)

    assert environment["FLOWER_BROKER_API"] == "http://y"


def test_the_management_is_asked_with_the_very_password(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given Flower with a login in the address, as it takes it
    asked = []

    async def ask(broker: RabbitMQ, _: list[str]) -> list[str]:
        asked.append((broker.http_api, broker.username, broker.password))
        return []

    monkeypatch.setattr(RabbitMQ, "queues", ask)
    decoded_login()
    broker = RabbitMQ("amqp://u:p@mq/v", "http://monitor:a%40b%3A%2F%23%25@mq:15672/api/")

    # When it asks, once and again
    for _ in range(2):
        asyncio.run(broker.queues(["dagster"]))

    # Then the login is none of the address's
    assert asked == 2 * [("http://mq:15672/api/", "monitor", "a@b:/#%")]
