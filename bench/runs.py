"""One measured run: executed in a process of its own, its times taken from the event log."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, execute_job
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.storage.tags import MAX_RETRIES_TAG

from bench.jobs import VARIANTS
from bench.walk import (
    ANNOUNCED,
    COMPUTED,
    LOADED,
    STARTED,
    STORED,
    SUCCEEDED,
    TAKEN,
    Mark,
    by_step,
    walk,
)

#: Where `dagster.yaml` names Dagster's own storages.
OWN_HOME = Path(__file__).parent
#: Marks the runs of this benchmark, by which they are removed in the end.
TAG = "dagster-stack/bench"
#: The events that say when something happened to a run or a step. For those that the executors write
#: themselves see `milestone`.
MILESTONES = {
    DagsterEventType.STEP_WORKER_STARTING: ANNOUNCED,
    DagsterEventType.STEP_WORKER_STARTED: TAKEN,
    DagsterEventType.STEP_START: STARTED,
    DagsterEventType.LOADED_INPUT: LOADED,
    DagsterEventType.STEP_OUTPUT: COMPUTED,
    DagsterEventType.HANDLED_OUTPUT: STORED,
    DagsterEventType.STEP_SUCCESS: SUCCEEDED,
}
TIMED_EVENTS = {
    *MILESTONES,
    DagsterEventType.ENGINE_EVENT,
    DagsterEventType.RUN_START,
    DagsterEventType.RUN_SUCCESS,
}
#: By this dagster-celery's executor and its worker mark the begin and the end of a step's wait for a worker.
STOCK_MARKER = "celery_queue_wait"


class RunFailed(Exception):
    """Raised when a measured run did not succeed."""


@dataclass(frozen=True)
class Times:
    """One run, in seconds: from its start to its success, and to the start of its first step."""

    seconds: float
    first_step: float
    #: The processor's, in the process that drives the run and its children.
    cpu: float
    #: Each step's own.
    steps: Mapping[str, float]
    #: Parts of the way from one step's success to the next one's, where steps come one after the other.
    walk: Mapping[str, float]


def timed_run(job: ReconstructableJob, variant: str) -> Times:
    """Execute a job, in a process that is then used up; raises when it does not succeed."""
    with instance_of(variant) as instance:
        before = sum(os.times()[:4])
        result = execute_job(job, instance, tags={TAG: "true", MAX_RETRIES_TAG: "0"})
        cpu = sum(os.times()[:4]) - before
        if not result.success:
            raise RunFailed(f"run {result.run_id} failed")
        return times(instance, result.run_id, cpu)


def instance_of(variant: str) -> DagsterInstance:
    """The instance that a variant runs on: this stack's, or one with Dagster's own storages."""
    if VARIANTS[variant].on_own_storage:
        os.environ["DAGSTER_HOME"] = str(OWN_HOME)
    return DagsterInstance.get()


def times(instance: DagsterInstance, run_id: str, cpu: float) -> Times:
    """A run's times as its event log has them."""
    events = [
        (entry.timestamp, entry.dagster_event)
        for entry in instance.all_logs(run_id, of_type=TIMED_EVENTS)
        if entry.dagster_event
    ]
    at = {event.event_type: moment for moment, event in events if event.is_job_event}
    start = at[DagsterEventType.RUN_START]
    marks = [
        Mark(moment, event.step_key, kind)
        for moment, event in events
        if event.step_key and (kind := milestone(event))
    ]
    steps = by_step(marks)
    return Times(
        seconds=at[DagsterEventType.RUN_SUCCESS] - start,
        cpu=cpu,
        first_step=min(found[STARTED] for found in steps.values()) - start,
        steps={key: found[SUCCEEDED] - found[STARTED] for key, found in steps.items()},
        walk=walk(marks),
    )


def milestone(event: DagsterEvent) -> str | None:
    """What of a step's way an event tells; None when nothing."""
    if event.event_type is DagsterEventType.ENGINE_EVENT:
        data = event.engine_event_data
        return {data.marker_start: ANNOUNCED, data.marker_end: TAKEN}.get(STOCK_MARKER)
    return MILESTONES.get(event.event_type)
