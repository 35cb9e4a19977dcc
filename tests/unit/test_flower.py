"""Flower as a service: what it counts does not grow with the steps."""

from types import SimpleNamespace

import pytest
from flower import options  # noqa: F401 (defines what PrometheusMetrics reads)
from flower.events import PrometheusMetrics, get_prometheus_metrics
from prometheus_client import REGISTRY

from dagster_stack.services.flower import bound_figures, name_broker_api


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
