"""The Celery app that runs send with and workers listen with: both must agree on queues and priorities."""

from pathlib import Path

from celery import Celery
from kombu.entity import Queue

from dagster_stack.authorities import broker_tls
from dagster_stack.messaging.address import address
from dagster_stack.messaging.task_names import STOCK_TASKS
from dagster_stack.settings import CeleryConfig, Settings

#: What dagster-celery's own app has, so that its executor and its command line meet our workers.
QUEUE = "dagster"
#: The range of every queue, from 0 on, and what a step without the tag has.
HIGHEST_PRIORITY, DEFAULT_PRIORITY = 10, 5

#: The address of a broker that is a folder.
FOLDER_BROKER = "filesystem://"
#: Seconds between looks into a folder that serves as broker: what each message may wait.
POLLING_SECS = 0.05


def make_app(config: CeleryConfig, settings: Settings) -> Celery:
    """An app with the settings of `celery.yaml` or a job; makes no connection."""
    broker = config.broker or address()
    app = Celery("dagster", broker=broker, backend=config.backend, include=config.include)
    app.conf.update(broker_use_ssl=broker_tls(broker))
    app.conf.update(config.config_source)
    if settings.embedded and not broker:
        use_folder_as_broker(app, settings.broker_folder)
    app.conf.update(
        task_queues=[
            Queue(QUEUE, routing_key=f"{QUEUE}.#", queue_arguments={"x-max-priority": HIGHEST_PRIORITY})
        ],
        task_routes={name: {"queue": QUEUE, "routing_key": f"{QUEUE}.{name}"} for name in STOCK_TASKS},
        task_queue_max_priority=HIGHEST_PRIORITY,
        task_default_priority=DEFAULT_PRIORITY,
    )
    return app


def use_folder_as_broker(app: Celery, folder: Path) -> None:
    """The embedded mode's broker: kombu's file system transport, which needs no server."""
    messages, taken, control = (folder / name for name in ("messages", "taken", "control"))
    for each in (messages, taken, control):
        each.mkdir(parents=True, exist_ok=True)
    app.conf.update(
        broker_url=FOLDER_BROKER,
        result_backend="disabled://",
        broker_transport_options={
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
            # Beside the messages: a consumer takes one by renaming it, which across file systems is a copy.
            "store_processed": True,
            "processed_folder": str(taken),
            "polling_interval": POLLING_SECS,
        },
    )
