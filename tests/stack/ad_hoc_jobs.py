"""Jobs that print, fail and retry: what `pipelines` has no reason to show. See `ad_hoc.py`."""

import sys
import time

from dagster import Backoff, Definitions, OpExecutionContext, RetryPolicy, job, op
from dagster_celery import celery_executor as stock_celery_executor

from dagster_stack import celery_executor, stack_resources

PATIENCE = RetryPolicy(max_retries=2, delay=0.2, backoff=Backoff.LINEAR)


#: Between the first line and the last: longer than it takes until a running step's output is uploaded.
PAUSE_SECS = 15


@op
def talk() -> None:
    print("first line of stdout", flush=True)
    print("a line of stderr", file=sys.stderr, flush=True)
    time.sleep(PAUSE_SECS)
    print("last line of stdout: ünïcode ✓", flush=True)


@op(retry_policy=PATIENCE)
def stubborn(context: OpExecutionContext) -> None:
    print(f"attempt {context.retry_number}")
    if context.retry_number < PATIENCE.max_retries:
        raise RuntimeError(f"attempt {context.retry_number} fails")


@op
def one() -> int:
    return 1


@op(tags={"dagster-celery/queue": "heavy"})
def add_one(number: int) -> int:
    return number + 1


@job(executor_def=celery_executor)
def talking() -> None:
    talk()


@job(executor_def=celery_executor)
def retrying() -> None:
    stubborn()


@job(executor_def=stock_celery_executor)
def stock() -> None:
    """The stock executor in place of the stack's own."""
    add_one(one())


defs = Definitions(jobs=[talking, retrying, stock], resources=stack_resources())
