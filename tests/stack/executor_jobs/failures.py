"""Failures, retries, and hooks."""

import socket

from dagster import (
    HookContext,
    OpExecutionContext,
    RetryPolicy,
    RetryRequested,
    failure_hook,
    job,
    op,
    success_hook,
)

from .data import follow, plus, source


@op
def bad() -> int:
    raise ValueError("bad fails on purpose")


@job
def failing() -> None:
    """A step that fails, what hangs on it, and what does not."""
    broken = bad()
    follow.alias("after_after_bad")(follow.alias("after_bad")(broken))
    fine = source()
    follow.alias("after_source")(fine)
    plus.alias("joined")(fine, broken)


@op(retry_policy=RetryPolicy(max_retries=2, delay=0.1))
def third_time_lucky(context: OpExecutionContext) -> int:
    if context.retry_number < 2:
        raise ValueError(f"attempt {context.retry_number} fails")
    return context.retry_number


@op
def asks_once(context: OpExecutionContext) -> int:
    if context.retry_number < 1:
        raise RetryRequested(max_retries=1, seconds_to_wait=0.1)
    return context.retry_number


@op
def asks_too_often() -> int:
    raise RetryRequested(max_retries=1, seconds_to_wait=0.1)


@op(retry_policy=RetryPolicy(max_retries=1))
def never_lucky() -> int:
    raise ValueError("no attempt succeeds")


@job
def retrying() -> None:
    follow.alias("after_third_time_lucky")(third_time_lucky())
    follow.alias("after_asks_once")(asks_once())
    follow.alias("after_asks_too_often")(asks_too_often())
    follow.alias("after_never_lucky")(never_lucky())


@success_hook
def glad(context: HookContext) -> None:
    context.log.info(f"glad about {context.step_key} on {socket.gethostname()}")


@failure_hook
def sad(context: HookContext) -> None:
    context.log.info(f"sad about {context.step_key} on {socket.gethostname()}: {context.op_exception}")


@success_hook
def clumsy(context: HookContext) -> None:
    raise RuntimeError("a hook that fails")


@job(hooks={glad, sad})
def hooked() -> None:
    bad()
    source.with_hooks({clumsy})()


JOBS = [failing, retrying, hooked]
