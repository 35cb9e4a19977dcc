"""A job that asks S3 with a client of its own. See `ad_hoc.py`."""

import os

import boto3
from dagster import Definitions, job, op

from dagster_stack import celery_executor, stack_resources


@op
def ask() -> None:
    """As any code does that knows nothing of the stack."""
    bucket = os.environ["DAGSTER_STACK_S3_BUCKET"]
    boto3.client("s3").put_object(Bucket=bucket, Key="own-client", Body=b"here")
    assert boto3.client("s3").get_object(Bucket=bucket, Key="own-client")["Body"].read() == b"here"


@job(executor_def=celery_executor)
def own_client() -> None:
    ask()


defs = Definitions(jobs=[own_client], resources=stack_resources())
