"""Steps that take longer than they may."""

import re
import time
from contextlib import suppress
from typing import Any

from dagster import Nothing, OpExecutionContext, Out, RetryPolicy, job, op


def limit(seconds: str) -> dict[str, Any]:
    """What an op is made with that may take so many seconds."""
    return {"tags": {"dagster-stack/timeout": seconds}, "out": Out(Nothing)}


@op(**limit("1"))
def sleeps() -> None:
    time.sleep(100)


@op(**limit("1"))
def ends_well() -> None:
    """As if nothing had happened."""
    with suppress(BaseException):
        time.sleep(100)


@op(**limit("3"))
def goes_on() -> None:
    while True:
        with suppress(BaseException):
            time.sleep(100)


@op(**limit("3"), retry_policy=RetryPolicy(max_retries=1))
def keeps_the_lock(context: OpExecutionContext) -> None:
    """In one call that ends after years; in its second attempt it ends at once."""
    if context.retry_number == 0:
        re.match("(a+)+$", "a" * 60 + "b")


@op(**limit("30"))
def in_time() -> None:
    time.sleep(1.5)


@op(out=Out(Nothing))
def of_its_run() -> None:
    """The run's tag limits it."""
    time.sleep(100)


@op(**limit("soon"))
def mistyped() -> None: ...


@job
def late() -> None:
    sleeps()
    ends_well()
    goes_on()
    keeps_the_lock()
    in_time()
    of_its_run()
    mistyped()


JOBS = [late]
