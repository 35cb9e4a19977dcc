"""A connection to the broker for occasional questions, with errors that a person can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError

from dagster_stack.authorities import broker_tls
from dagster_stack.errors import BrokerUnreachable, UsageError
from dagster_stack.settings import BROKER_VARIABLE

#: Seconds for a connection to the broker, which is one hop away.
CONNECT_TIMEOUT_SECS = 3.0


@contextmanager
def connected(broker: str | None) -> Iterator[tuple[Celery, Any]]:
    """An app on a broker and a connection to it. Raises UsageError or BrokerUnreachable, from the block too."""
    if not broker:
        raise UsageError(
            f"{BROKER_VARIABLE} is not set: without a broker there are no workers (embedded mode), or this"
            " is not the stack's `cli` container (make's targets use that)."
        )
    app = Celery(broker=broker)
    # One try, since a person waits.
    app.conf.update(
        broker_connection_timeout=CONNECT_TIMEOUT_SECS,
        broker_connection_retry=False,
        broker_use_ssl=broker_tls(broker),
    )
    try:
        transport = app.connection_for_write().transport
    except KeyError as error:
        raise UsageError(f"{BROKER_VARIABLE} must start with amqp:// or amqps://.") from error
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_TIMEOUT_SECS)
            yield app, connection
    except (OSError, KombuError, *transport.connection_errors, *transport.channel_errors) as error:
        raise BrokerUnreachable(
            # as_uri leaves the password out.
            f"The broker can't be used at {app.connection_for_write().as_uri()} ({error})."
            f" `make up` starts the stack; {BROKER_VARIABLE} says where the broker is."
        ) from error
