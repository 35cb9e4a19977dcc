"""The loggers of Celery and Dagster, which set up handlers of their own: here they get those of the service."""

import logging
from types import ModuleType
from typing import Any

from dagster_stack.logs.lines import KNOWN_ACTIONS
from dagster_stack.logs.service import ServiceHandler, active, configure
from dagster_stack.patches import celery, dagster

logger = logging.getLogger(__name__)


def leave_to_service(module: ModuleType) -> None:
    """Let a command of Dagster's, by its module, set up no handlers: the service has."""
    dagster.CONFIGURE_LOGGERS[module.__name__].replace(lambda *_, **__: None)


# --- Celery -------------------------------------------------------------------------------------------------


def use_in_celery() -> None:
    """Let workers of this process log as a service; the variable DAGSTER_STACK_SERVICE says which."""
    from celery import signals

    # A weak reference would be gone with the caller's frame.
    signals.setup_logging.connect(set_up_worker, weak=False)
    signals.celeryd_init.connect(silence_banner, weak=False)


def set_up_worker(loglevel: int | None = None, **_: Any) -> None:
    """In the place of Celery's own set-up, with its option --loglevel."""
    from billiard.util import get_logger
    from celery.app import trace

    configure("worker", loglevel or logging.INFO)
    celery.SAFE_SAY.replace(say)
    KNOWN_ACTIONS.update(
        {
            trace.LOG_RECEIVED: "task.received",
            trace.LOG_SUCCESS: "task.succeeded",
            trace.LOG_FAILURE: "task.failed",
            trace.LOG_IGNORED: "task.ignored",
            trace.LOG_REJECTED: "task.rejected",
            trace.LOG_RETRY: "task.retried",
        }
    )
    pool = get_logger()
    pool.propagate = True
    # As Celery has it: its information is for those who work on it.
    pool.setLevel(logging.ERROR)


def say(message: str, *_: Any) -> None:
    """In the place of what prints that the worker was told to stop, which it is by a signal."""
    logger.warning("%s", message, extra={"action": "worker.stopping"})


def silence_banner(instance: Any, **_: Any) -> None:
    """What the worker prints about itself at its start is made of many lines, and in its configuration."""
    instance.quiet = True


# --- Dagster ------------------------------------------------------------------------------------------------


def use_in_dagster() -> None:
    """Let the console of each run, sensor and schedule in this process be the service's log, if it has one."""
    if active() is None:
        return
    for each in dagster.CONSOLE_LOGGERS:
        each.replace(console_logger)


def console_logger(name: str, level: str | int) -> logging.Logger:
    """In the place of Dagster's own, which sets up colours anew for each step."""
    log = active()
    assert log
    console = logging.Logger(name, level)
    console.addHandler(ServiceHandler(log, of_dagster=True))
    return console
