"""`flights`: a year in twelve parallel steps, each with its own month, and a report."""

from collections.abc import Iterator

from dagster import (
    DefaultScheduleStatus,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    ScheduleDefinition,
    job,
    op,
)

from dagster_stack import ObjectStore
from pipelines.flights import source
from pipelines.flights.delays import Summary, summarize
from pipelines.flights.report import publish
from pipelines.flights.table import checked

#: Step names: month_01 to month_12.
STEPS = {month: f"month_{month:02}" for month in source.MONTHS}


@op(out={step: Out(str, description="The key of the month's CSV object.") for step in STEPS.values()})
def split_by_month(store: ObjectStore) -> Iterator[Output[str]]:
    """Puts the year's table into the store as twelve objects, so that a step reads no other month."""
    for month, table in source.month_tables(source.MONTHS).items():
        key = source.month_key(month)
        store.put(key, table, "text/csv")
        yield Output(
            key,
            STEPS[month],
            metadata={"rows": table.count(b"\n") - 1, "bytes": len(table), "object": store.uri(key)},
        )


@op
def sum_up(context: OpExecutionContext, store: ObjectStore, key: str) -> Summary:
    """Checks a month's rows and adds up the delays of the good ones."""
    with checked(store, key) as table:
        context.add_output_metadata({**table.outcome.counts(), **table.save_rejected(store)})
        return summarize(table.path)


@op
def join_months(context: OpExecutionContext, months: list[Summary]) -> Summary:
    """Adds up the months; fails unless every row of the year is accounted for."""
    year = sum(months, Summary())
    year.outcome.account_for(source.ROWS)
    context.add_output_metadata(year.outcome.counts())
    return year


@op(out=Out(Nothing))
def report(context: OpExecutionContext, store: ObjectStore, summary: Summary) -> None:
    """Writes tables and picture: see this step's output in Dagit, or the page behind its link."""
    prefix = f"reports/{context.job_name}/{context.run_id}"
    context.add_output_metadata(publish(store, summary, prefix, "Delays of flights from New York"))


@job
def flights() -> None:
    """336,776 flights: split by month, checked and summed up in parallel, joined, reported."""
    keys = split_by_month()
    report(join_months([sum_up.alias(step)(getattr(keys, step)) for step in STEPS.values()]))


#: Off until somebody turns it on in Dagit: the year 2013 is over.
nightly_flights = ScheduleDefinition(
    name="nightly_flights",
    job=flights,
    cron_schedule="0 3 * * *",
    default_status=DefaultScheduleStatus.STOPPED,
    description="Runs `flights` at 03:00 UTC. Stopped by default: turn it on under Automation.",
)
