"""What the peers execute: 40 steps of 2 s, by dagster-celery's executor or in the run's own process."""

import time

from dagster import Definitions, in_process_executor, job, op
from dagster_aws.s3 import S3PickleIOManager, S3Resource
from dagster_celery import celery_executor

STEPS, STEP_SECS = 40, 2
BROKER = {"broker": {"env": "CELERY_BROKER_URL"}}
RESOURCES = {
    "io_manager": S3PickleIOManager(s3_resource=S3Resource(), s3_bucket="dagster", s3_prefix="peers"),
}


@op
def nap() -> None:
    time.sleep(STEP_SECS)


@job(executor_def=celery_executor.configured(BROKER), resource_defs=RESOURCES)
def on_workers() -> None:
    for number in range(STEPS):
        nap.alias(f"nap_{number}")()


@job(executor_def=in_process_executor, resource_defs=RESOURCES)
def in_one_process() -> None:
    for number in range(STEPS):
        nap.alias(f"nap_{number}")()


defs = Definitions(jobs=[on_workers, in_one_process])
