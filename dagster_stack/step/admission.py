"""Whether an attempt of a step, whose message came, is to be executed: what the event log says of it."""

from dagster import DagsterEventType, DagsterRunStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from dagster_stack.store.event_log import AttemptState

#: A run in these states executes nothing any more.
ENDED_RUN = {*FINISHED_STATUSES, DagsterRunStatus.CANCELING}


def objection(state: AttemptState, attempt: int) -> str | None:
    """Why this attempt is not to be executed, or None."""
    if state.run and state.run.status in ENDED_RUN:
        return f"its run is {state.run.status.value}"
    retries = state.ends[DagsterEventType.STEP_UP_FOR_RETRY]
    if state.ends.total() > retries or retries >= attempt:
        return "the event log has its end already: the message came twice"
    return None
