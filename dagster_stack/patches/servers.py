"""Parts of the servers: uvicorn, starlette, Flower."""

from functools import partial
from typing import Any

from dagster_stack.patches.part import Part

# fmt: off
_uvicorn = partial(Part, read="uvicorn 0.54.0")
_starlette = partial(Part, read="starlette 1.10.0")
_flower = partial(Part, read="flower 2.2.0")

UVICORN_LOGGING = _uvicorn("uvicorn.config:LOGGING_CONFIG",
    "dict of disable_existing_loggers, formatters, handlers, loggers, version",
    "Dagit starts uvicorn without a logging config, and uvicorn's own prints each line a second time.")
SEND_JSON = _starlette("starlette.websockets:WebSocket.send_json", "self, data, mode",
    "a lone surrogate in an answer can't be encoded, and ends the page's connection.")
OBSERVE_TASK = _flower("flower.events:PrometheusMetrics.observe_task", "self, worker, event, task",
    "Flower keeps series for each name of a task on each worker without an end, and here a task has its step's name.")
QUEUES_OF_RABBITMQ = _flower("flower.utils.broker:RabbitMQ.queues", "self, names",
    "Flower hands Tornado the login in an address too, where Tornado decodes none of it: RabbitMQ refuses a password with a @.")
# fmt: on


def without_handlers() -> None:
    """Let uvicorn in this process leave its loggers to the service."""
    found: dict[str, Any] = UVICORN_LOGGING.found()
    # In place: it is the default value of an argument.
    found.update(handlers={}, loggers={name: {} for name in found["loggers"]})
