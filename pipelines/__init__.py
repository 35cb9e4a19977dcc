"""Your code: the jobs, assets, schedule and sensor that every service of the stack loads.

Heavy libraries are imported inside the functions that use them, so that a worker which never does stays small.
"""

from dagster import Definitions

from dagster_stack import celery_executor, stack_resources
from pipelines.flights.assets import ASSETS, delay_report_accounts_for_all_rows, flights_by_month
from pipelines.flights.inbox import inbox, inbox_flights
from pipelines.flights.job import flights, nightly_flights
from pipelines.parallel import parallel_pipeline
from pipelines.queues import queues

defs = Definitions(
    jobs=[parallel_pipeline, queues, flights, flights_by_month, inbox_flights],
    assets=ASSETS,
    asset_checks=[delay_report_accounts_for_all_rows],
    schedules=[nightly_flights],
    sensors=[inbox],
    resources=stack_resources(),
    executor=celery_executor,
)
