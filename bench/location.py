"""The code location of this benchmark, loaded while it measures launches: one step that does nothing, partitioned."""

from dagster import Definitions, StaticPartitionsDefinition, in_process_executor, op
from dagster import job as dagster_job

from bench.works import PARTITIONS
from dagster_stack import celery_executor, stack_resources

partitions = StaticPartitionsDefinition([f"{number:03}" for number in range(PARTITIONS)])


@op
def nothing() -> None:
    """What its run takes is what a run costs."""


@dagster_job(partitions_def=partitions, executor_def=celery_executor, resource_defs=stack_resources())
def launched_stack() -> None:
    nothing()


# In the run's own process: no second one has to start for its step.
@dagster_job(partitions_def=partitions, executor_def=in_process_executor, resource_defs=stack_resources())
def launched_stock() -> None:
    nothing()


defs = Definitions(jobs=[launched_stack, launched_stock])
