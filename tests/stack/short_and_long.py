"""A job of many short steps and one long one. Loaded from a file, beside the user's code."""

import time

from dagster import job, op

from dagster_stack import celery_executor, stack_resources

NUMBER, SHORT_SECS, LONG_SECS = 120, 1.5, 200


@op
def short() -> None:
    time.sleep(SHORT_SECS)


@op
def long() -> None:
    time.sleep(LONG_SECS)


@job(executor_def=celery_executor, resource_defs=stack_resources())
def short_and_long() -> None:
    long()
    for number in range(NUMBER):
        short.alias(f"short_{number}")()
