"""The broker's address, with its password: in the environment, until a process that executes steps removes it."""

import os

from celery import Celery

from dagster_stack.messaging.task_names import RUN_QUEUE
from dagster_stack.settings import BROKER_PARTS, BROKER_VARIABLE, broker_address

_withheld: dict[str, str] = {}


def address() -> str | None:
    """As this process's environment says, or said."""
    return broker_address() or _withheld.get(BROKER_VARIABLE)


def withhold(app: Celery | None = None) -> None:
    """Take it out of this process's environment, before user code is loaded, and give it to the app, if there is one.

    Not where runs are driven: executors of jobs, which are executed there, read it, and so do the processes they start.
    """
    if app and RUN_QUEUE in app.amqp.queues.consume_from:
        return
    url = broker_address()
    for name in (BROKER_VARIABLE, BROKER_PARTS["PASSWORD"]):
        os.environ.pop(name, None)
    if url:
        _withheld[BROKER_VARIABLE] = url
        if app:
            app.conf.broker_url = url
