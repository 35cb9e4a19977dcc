"""Jobs that ops of a test execute by themselves, within their step; in the middle, what the test says happens."""

from collections.abc import Callable
from typing import Any

from dagster import AssetExecutionContext, OpExecutionContext, asset, job, op

from dagster_stack import celery_executor

#: What happens within the run.
happening: Callable[[str], Any] = str


@op
def before() -> int:
    return 1


@op
def happens(context: OpExecutionContext, number: int) -> int:
    happening(context.run_id)
    return number


@op
def after(number: int) -> int:
    return number + 1


@job(executor_def=celery_executor)
def inner() -> None:
    after(happens(before()))


@op
def executes_inner(context: OpExecutionContext) -> None:
    inner.execute_in_process(instance=context.instance)


@job
def between() -> None:
    executes_inner()


@asset
def table(context: AssetExecutionContext) -> None:
    happening(context.run_id)
