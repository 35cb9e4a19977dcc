"""The Celery app on which runs and workers must agree: queues, priorities, routes and the broker."""

from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from dagster_celery.make_app import make_app as stock_app
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG

from dagster_stack import tags
from dagster_stack.messaging import app_factory
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.task_names import STEP_TASK, STOCK_TASKS
from dagster_stack.settings import CeleryConfig, Settings


def embedded(tmp_path: Path) -> Settings:
    return Settings.from_environment({"DAGSTER_HOME": str(tmp_path)})


def stack(tmp_path: Path) -> Settings:
    return Settings.from_environment({"DAGSTER_HOME": str(tmp_path), "DAGSTER_STACK_S3_BUCKET": "dagster"})


def made(tmp_path: Path, **config: Any) -> Celery:
    return make_app(CeleryConfig(**config), stack(tmp_path))


def test_every_queue_has_ten_priorities_also_one_that_a_tag_names(tmp_path: Path) -> None:
    app = made(tmp_path)

    assert DAGSTER_CELERY_QUEUE_TAG == tags.QUEUE
    for name in ("dagster", "heavy"):
        queue = app.amqp.queues.select_add(name)
        assert (queue.durable, queue.queue_arguments) == (True, {"x-max-priority": 10})
    assert tags.HIGHEST == app_factory.HIGHEST_PRIORITY == app.conf.task_queue_max_priority
    assert tags.DEFAULT == app_factory.DEFAULT_PRIORITY == app.conf.task_default_priority


def test_the_stock_executors_steps_find_the_same_queue(tmp_path: Path) -> None:
    """Its own app declares it on the same broker: another type or argument would be refused."""
    ours, stocks = made(tmp_path), stock_app()

    (queue,), (stock_queue,) = ours.conf.task_queues, stocks.conf.task_queues
    assert (queue.name, queue.routing_key) == (stock_queue.name, stock_queue.routing_key)
    assert queue.queue_arguments == stock_queue.queue_arguments
    for name in STOCK_TASKS:
        if name in stocks.conf.task_routes:
            assert ours.conf.task_routes[name] == stocks.conf.task_routes[name]


def test_a_step_goes_to_the_queue_that_it_is_sent_to(tmp_path: Path) -> None:
    """Without a route of its own: the executor names the queue of each step."""
    app = made(tmp_path)

    assert STEP_TASK not in app.conf.task_routes
    assert app.amqp.router.route({"queue": "heavy"}, STEP_TASK)["queue"].name == "heavy"


def test_settings_of_the_config_are_the_apps_but_for_what_makes_queues_fit(tmp_path: Path) -> None:
    """Two apps with other queue arguments could not declare the same queue."""
    app = made(
        tmp_path,
        broker="amqp://b//",
        backend="rpc://",
        include=["my.tasks"],
        config_source={"worker_prefetch_multiplier": 7, "task_queue_max_priority": 3},
    )

    assert app.conf.worker_prefetch_multiplier == 7
    assert app.conf.include == ["my.tasks"]
    assert app.conf.result_backend == "rpc://"
    assert app.conf.task_queue_max_priority == 10


def test_making_an_app_needs_no_broker(tmp_path: Path) -> None:
    assert made(tmp_path, broker="amqp://127.0.0.1:1//").connection_for_write().connected is False


# --- the embedded mode --------------------------------------------------------------------------------------------


def test_in_the_embedded_mode_the_broker_is_a_folder(tmp_path: Path) -> None:
    app = make_app(CeleryConfig(), embedded(tmp_path))

    options = app.conf.broker_transport_options
    folder = tmp_path / "broker"
    assert app.connection_for_write().transport.driver_type == "filesystem"
    assert options["data_folder_in"] == options["data_folder_out"]
    for name in ("data_folder_in", "processed_folder", "control_folder"):
        assert Path(options[name]).is_dir()
        assert Path(options[name]).parent == folder
    # A message that waits for the next look is a step that waits.
    assert options["polling_interval"] <= 0.1


def test_a_message_in_the_folder_is_taken_by_a_rename(tmp_path: Path) -> None:
    """Across file systems a rename is a copy: two workers could take the same message."""
    options = make_app(CeleryConfig(), embedded(tmp_path)).conf.broker_transport_options

    devices = {Path(options[name]).stat().st_dev for name in ("data_folder_in", "processed_folder")}
    assert options["store_processed"] is True
    assert len(devices) == 1


@pytest.mark.parametrize("place", ["config", "environment"])
def test_a_broker_that_somebody_names_is_used_in_the_embedded_mode_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("CELERY_BROKER_URL", "amqp://named//")

    app = make_app(CeleryConfig(broker="amqp://named//" if place == "config" else None), embedded(tmp_path))

    assert app.connection_for_write().hostname == "named"
    assert not (tmp_path / "broker").exists()


def test_in_the_stack_no_folder_is_made(tmp_path: Path) -> None:
    made(tmp_path)

    assert list(tmp_path.iterdir()) == []
