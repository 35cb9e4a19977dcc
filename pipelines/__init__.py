"""Your code: the jobs, assets, schedule and sensor that every service of the stack loads.

Heavy libraries are imported inside the functions that use them, so that a worker which never does stays small.
"""

from dagster import Definitions

from dagster_stack import celery_executor, stack_resources
from pipelines import parallel, queues
from pipelines.flights import assets, inbox, job

defs = Definitions(
    jobs=[
        parallel.parallel_pipeline,
        queues.queues,
        job.flights,
        assets.flights_by_month,
        inbox.inbox_flights,
    ],
    assets=assets.ASSETS,
    asset_checks=[assets.delay_report_accounts_for_all_rows],
    schedules=[job.nightly_flights],
    sensors=[inbox.inbox],
    resources=stack_resources(),
    executor=celery_executor,
)
