"""All of them, as the stack's executor has them, or Dagster's own."""

import os

from dagster import Definitions, in_process_executor
from dagster_celery import celery_executor as stock_celery_executor

from dagster_stack import celery_executor, stack_resources

from . import IN_PROCESS, assets, data, failures, leftovers, output, queues, resources, time_limits

defs = Definitions(
    jobs=[
        *(
            job
            for subject in (data, failures, resources, assets, queues, time_limits, leftovers, output)
            for job in subject.JOBS
        ),
        queues.mixed.to_job("mixed_ours"),
        queues.mixed.to_job("mixed_stock", executor_def=stock_celery_executor),
    ],
    assets=assets.ASSETS,
    asset_checks=assets.CHECKS,
    executor=in_process_executor if os.environ.get(IN_PROCESS) else celery_executor,
    resources={**stack_resources(), **resources.RESOURCES},
)
