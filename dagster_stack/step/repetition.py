"""Whether a step attempt that was executed before is executed once more."""

from typing import NamedTuple

from dagster_stack import tags
from dagster_stack.failure_reasons import Reason
from dagster_stack.settings import MAX_DELIVERIES_VARIABLE, Settings
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.leases import STOPPED, Lease

#: Executions of one attempt that may be cut short before it fails: their worker was lost (which has a lower limit of
#: its own), was without the database, or did not report the end. Workers that are told to stop count apart, up to
#: MOST_STOPS: scaling and deployments may be frequent, and only a step that never ends is meant.
MOST_EXECUTIONS = 10
MOST_STOPS = 100
#: Reasons that its failure names.
REASONS_TOLD = 3


class Refusal(NamedTuple):
    """Why a step is not executed, in words too."""

    reason: Reason
    text: str


def refusal(lease: Lease, may_repeat: bool, storage: PooledEventLogStorage) -> Refusal | None:
    """The reason not to repeat it, if any; unless it `may_repeat`, a step that had begun is not repeated."""
    losses = lease.losses
    if losses and not may_repeat:
        return _twice(f"its execution was lost ({losses[0]})")
    begun = storage.begun(lease.work) if lease.epoch > 1 and not may_repeat else None
    if begun is not None:
        return _twice(
            f"it had begun ({begun.rstrip('.')}) and did not end, since its worker was stopped or without the database"
        )
    if len(losses) >= Settings.from_environment().max_deliveries:
        return Refusal(
            Reason.DELIVERY_LIMIT,
            f"It was delivered {len(losses)} times, and each time its worker was lost:"
            f" {'; '.join(map(str, losses))}. {MAX_DELIVERIES_VARIABLE} in .env is the limit.",
        )
    before = lease.before
    counted = [each for each in before if each.reason != STOPPED]
    if len(counted) < MOST_EXECUTIONS and len(before) < MOST_STOPS:
        return None
    last = "; ".join(map(str, before[-REASONS_TOLD:]))
    return Refusal(
        Reason.EXECUTION_LIMIT,
        f"It was executed {len(before)} times and never came to its end. The last {REASONS_TOLD} times: {last}.",
    )


def _twice(why: str) -> Refusal:
    return Refusal(
        Reason.NOT_REPEATED,
        f"It must not be executed twice ({tags.REDELIVER}), and {why}."
        " It may have done its work: look at what it changes before you run it again.",
    )
