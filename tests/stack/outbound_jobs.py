"""A job that calls the outside. See `ad_hoc.py`."""

import urllib.request

import requests
from dagster import Definitions, OpExecutionContext, job, op

from dagster_stack import celery_executor, stack_resources


@op
def call(context: OpExecutionContext) -> None:
    """By the two clients that most libraries use."""
    with urllib.request.urlopen("http://outside.example/urllib", timeout=10) as answer:
        context.add_output_metadata({"urllib": answer.read().decode()})
    assert requests.get("http://outside.example/requests", timeout=10).ok


@job(executor_def=celery_executor)
def outbound() -> None:
    call()


defs = Definitions(jobs=[outbound], resources=stack_resources())
