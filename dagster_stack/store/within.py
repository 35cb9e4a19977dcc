"""A run that a step executes by itself is part of that execution: the lease that both live by.

A variable tells it to the step's process and to all that it starts, the run's tag to whoever looks after runs.
"""

import json
import os
from functools import lru_cache

from dagster import DagsterRun

from dagster_stack import tags
from dagster_stack.store.leases import Lease, Work

#: Set while a step is executed: what its lease is, or anything where nobody leases steps.
VARIABLE = "DAGSTER_STACK_WITHIN_STEP"


def to_text(lease: Lease) -> str:
    return json.dumps({**lease.key, "holder": lease.holder})


@lru_cache
def from_text(text: str) -> Lease | None:
    """None for what is no lease, as users may set the tag too."""
    try:
        said = json.loads(text)
        work = Work(str(said["run"]), str(said["step"]), int(said["attempt"]))
        return Lease(work, int(said["epoch"]), str(said["holder"]))
    except (ValueError, TypeError, LookupError):
        return None


def lease_here(run_id: str) -> Lease | None:
    """The lease of the step that this process executes, or works for, if that is of another run than this one."""
    lease = from_text(os.environ.get(VARIABLE, ""))
    return lease if lease and lease.work.run_id != run_id else None


def lease_of(run: DagsterRun) -> Lease | None:
    """The lease by which a run that nobody launched is executed, if a step does so."""
    return from_text(run.tags.get(tags.WITHIN, "")) if tags.CODE not in run.tags else None
