"""What the event log says about a step message that arrived: execute it, or is its work done already?"""

from collections import Counter
from dataclasses import dataclass, field

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus

from dagster_stack.storage.ledger import ledger_of

#: A run in these states executes nothing any more.
ENDED_RUN = {
    DagsterRunStatus.SUCCESS,
    DagsterRunStatus.FAILURE,
    DagsterRunStatus.CANCELED,
    DagsterRunStatus.CANCELING,
}


@dataclass(frozen=True)
class Standing:
    """A run's status, and how the attempts of one of its steps ended, as the storage knows it now."""

    #: None: nobody knows the run.
    run_status: DagsterRunStatus | None
    ends: Counter[DagsterEventType]
    #: The content hash of the code that drives the run; None when nobody has said it.
    code: str | None = None
    #: The run as it is now, with the tags that its steps have given it. None: nobody knows it.
    run: DagsterRun | None = field(default=None, compare=False)

    def objection(self, attempt: int) -> str | None:
        """Why this attempt is not to be executed, or None."""
        if self.run_status in ENDED_RUN:
            return f"its run is {self.run_status.value}"
        retries = self.ends[DagsterEventType.STEP_UP_FOR_RETRY]
        if self.ends.total() > retries or retries >= attempt:
            return "the event log has its end already: the message came twice"
        return None


def standing(instance: DagsterInstance, run_id: str, step_key: str) -> Standing:
    run, code, ends = ledger_of(instance).attempt_state(run_id, step_key)
    return Standing(run.status if run else None, ends, code, run)
