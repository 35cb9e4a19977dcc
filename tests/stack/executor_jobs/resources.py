"""Resources of steps."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import (
    ConfigurableResource,
    InitResourceContext,
    OpExecutionContext,
    ResourceParam,
    RetryPolicy,
    job,
    op,
    resource,
)

from .data import follow, show, source


class Greeting(ConfigurableResource):
    word: str = "hello"


@resource
@contextmanager
def lease(context: InitResourceContext) -> Iterator[str]:
    assert context.log
    context.log.info(f"lease taken on {socket.gethostname()} by {os.getpid()}")
    try:
        yield "lease"
    finally:
        context.log.info(f"lease given back on {socket.gethostname()} by {os.getpid()}")


@resource
def unavailable(_: InitResourceContext) -> None:
    raise ConnectionError("the license server says no")


@op
def greet(context: OpExecutionContext, greeting: Greeting, lease: ResourceParam[str]) -> int:
    show(context, f"{greeting.word} {lease}")
    return 1


@op(required_resource_keys={"lease"})
def fails_with_lease() -> None:
    raise ValueError("fails while it holds the lease")


@job
def with_resources() -> None:
    greet()
    fails_with_lease()


@op(required_resource_keys={"unavailable"})
def needs_unavailable() -> int:
    return 1


@op(required_resource_keys={"unavailable"}, retry_policy=RetryPolicy(max_retries=1))
def insists_on_unavailable() -> int:
    return 1


@job
def without_resource() -> None:
    follow(needs_unavailable())
    insists_on_unavailable()
    source()


JOBS = [with_resources, without_resource]
RESOURCES = {"greeting": Greeting.configure_at_launch(), "lease": lease, "unavailable": unavailable}
