"""The `flower` service: Celery's tasks as they go, with logs as all services have them."""

import os
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from dagster_stack.logs.service import configure
from dagster_stack.messaging.management import PASSWORD_VARIABLE, URL_VARIABLE, USER_VARIABLE
from dagster_stack.patches.servers import OBSERVE_TASK, QUEUES_OF_RABBITMQ

#: Flower's own.
BROKER_API_VARIABLE = "FLOWER_BROKER_API"


def bound_figures() -> None:
    """Let Flower count workers, not tasks, for Prometheus.

    It keeps series for each name of a task on each worker, and here a task is called after its step: thousands that
    nobody reads (7 KB each; with 8,000 of them an answer takes a second of Flower's only thread).
    """
    OBSERVE_TASK.replace(lambda *_: None)


def name_broker_api(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give Flower RabbitMQ's management in the one form that it takes: an address with a login."""
    url, user, password = (
        environment.get(name, "") for name in (URL_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE)
    )
    if url and password and not environment.get(BROKER_API_VARIABLE):
        scheme, _, place = url.rstrip("/").partition("://")
        login = ":".join(quote(text, safe="") for text in (user, password))
        environment[BROKER_API_VARIABLE] = f"{scheme}://{login}@{place}/api/"


def decoded_login() -> None:
    """Let Flower take the login for RabbitMQ's management out of the address, whatever characters it has."""
    ask = QUEUES_OF_RABBITMQ.found()

    async def queues(broker: Any, names: Any) -> Any:
        place = urlsplit(broker.http_api)
        if place.username:
            broker.username, broker.password = unquote(place.username), unquote(place.password or "")
            broker.http_api = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()
        return await ask(broker, names)

    QUEUES_OF_RABBITMQ.replace(queues)


def main() -> None:
    """Run Flower, as FLOWER_* configure it, until it is stopped."""
    name_broker_api()
    # Whoever imports it becomes the app's process.
    from dagster_stack.app import app

    configure("flower")
    bound_figures()
    decoded_login()
    # Quiet: what it prints of itself at its start is made of many lines.
    app.start(["--quiet", "flower"])


if __name__ == "__main__":
    main()
