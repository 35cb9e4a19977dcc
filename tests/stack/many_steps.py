"""A job of many steps that do nothing: half a minute on two cores. Loaded from a file, beside the user's code."""

from dagster import job, op

from dagster_stack import celery_executor, stack_resources

NUMBER = 1000


@op
def nothing() -> int:
    return 0


@job(executor_def=celery_executor, resource_defs=stack_resources())
def many_steps() -> None:
    for number in range(NUMBER):
        nothing.alias(f"step_{number}")()
