"""After a restore: what is under way in the restored database, and what becomes of it before the daemon starts."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from dagster import DagsterInstance, DagsterRun, RunsFilter
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

#: Runs that are read at a time.
PAGE = 500


@dataclass(frozen=True)
class UnderWay:
    """A run or a backfill that has not ended."""

    kind: str
    id: str
    name: str
    status: str


@dataclass(frozen=True)
class Schedule:
    """A schedule that is on, and when it was last evaluated: seconds since 1970."""

    name: str
    cron: str
    last: float


def runs_under_way(instance: DagsterInstance) -> Iterator[DagsterRun]:
    """All runs that have not ended, the newest first."""
    cursor = None
    while True:
        page = instance.get_runs(RunsFilter(statuses=list(NOT_FINISHED_STATUSES)), cursor=cursor, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        cursor = page[-1].run_id


def backfills_under_way(instance: DagsterInstance) -> list[PartitionBackfill]:
    statuses = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
    return [backfill for status in statuses for backfill in instance.get_backfills(status=status)]


def schedules_on(instance: DagsterInstance) -> list[tuple[InstigatorState, ScheduleInstigatorData]]:
    """The schedules that would catch up."""
    states = instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE)
    return [
        (state, data)
        for state in states
        if state.status != InstigatorStatus.STOPPED
        and isinstance(data := state.instigator_data, ScheduleInstigatorData)
    ]


def found(instance: DagsterInstance) -> dict[str, list[dict[str, object]]]:
    """What is to be decided on."""
    under_way = [
        UnderWay("run", run.run_id, run.job_name, run.status.value) for run in runs_under_way(instance)
    ]
    under_way += [
        UnderWay(
            "backfill", each.backfill_id, each.title or each.partition_set_name or "assets", each.status.value
        )
        for each in backfills_under_way(instance)
    ]
    schedules = [
        Schedule(
            state.instigator_name,
            crons(data),
            max(data.last_iteration_timestamp or 0, data.start_timestamp or 0),
        )
        for state, data in schedules_on(instance)
    ]
    return {
        "under_way": [asdict(each) for each in under_way],
        "schedules": [asdict(each) for each in schedules],
    }


def crons(data: ScheduleInstigatorData) -> str:
    return data.cron_schedule if isinstance(data.cron_schedule, str) else ", ".join(data.cron_schedule)


def cancel(instance: DagsterInstance) -> int:
    """End all runs and backfills that are under way; returns how many."""
    message = f"Canceled after a restore, at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC."
    backfills = backfills_under_way(instance)
    for backfill in backfills:
        # First, so that it launches nothing in place of its runs.
        instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    runs = list(runs_under_way(instance))
    for run in runs:
        instance.report_run_canceled(run, message=message)
    return len(runs) + len(backfills)


def skip(instance: DagsterInstance) -> int:
    """Let all schedules that are on begin with their next time from now on; returns how many."""
    found = schedules_on(instance)
    now = time.time()
    for state, data in found:
        later = ScheduleInstigatorData(data.cron_schedule, data.start_timestamp, last_iteration_timestamp=now)
        instance.update_instigator_state(state.with_data(later))
    return len(found)
