"""How steps are called back: waiting ones are dropped, running ones are interrupted, then killed."""

import logging
import time
from collections.abc import Sequence
from dataclasses import astuple

from celery import Celery
from dagster import DagsterInstance
from kombu.exceptions import OperationalError

from dagster_stack.messaging.messages import step_task_id
from dagster_stack.store.leases import Work
from dagster_stack.store.ledger import Ledger, ledger_of
from dagster_stack.timing import GRACE_SECS

logger = logging.getLogger(__name__)

#: Seconds between two looks whether all have ended.
LOOK_SECS = 0.2


def revoke(app: Celery, task_ids: Sequence[str], signal: str = "SIGINT") -> None:
    """Tell all workers: the worker that gets a waiting step drops it, the process of a running one gets the signal."""
    if not task_ids:
        return
    try:
        app.control.revoke(list(task_ids), terminate=True, signal=signal)
    except (OperationalError, OSError) as error:
        # A worker executes nothing of a run that has ended, and ends what it executes when it sees that.
        logger.warning(
            "%d steps could not be called back: %s",
            len(task_ids),
            error,
            extra={"action": "step.not_called_back"},
        )


def call_back(app: Celery, instance: DagsterInstance, run_id: str, task_ids: Sequence[str]) -> list[str]:
    """Revoke tasks of a run; returns the keys of steps that had to be killed. Nothing of the run reports any more."""
    revoke(app, task_ids)
    ledger = ledger_of(instance)
    until = time.monotonic() + GRACE_SECS
    while (running := running_steps(ledger, run_id)) and time.monotonic() < until:
        time.sleep(LOOK_SECS)
    # One that nobody can reach (a worker that is cut off) ends itself when it sees the run's end, a grace period later.
    # One without a sign of life may be alive: code that keeps Python's global lock can be ended from outside only.
    left = ledger.revoke_steps(run_id)
    revoke(app, [step_task_id(*astuple(work)) for work in left], signal="SIGKILL")
    return sorted(work.step_key for work in running)


def running_steps(ledger: Ledger, run_id: str) -> list[Work]:
    return [work for work in ledger.active([run_id]) if work.step_key]
