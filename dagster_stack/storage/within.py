"""A run that a step executes by itself is part of that execution: the claim that both live by.

A variable tells it to the step's process and to all that it starts, the run's tag to whoever looks after runs.
"""

import json
import os
from functools import lru_cache

from dagster import DagsterRun

from dagster_stack import tags
from dagster_stack.storage.claims import Claim, Work

#: Set while a step is executed: what its claim is, or anything where nobody claims steps.
VARIABLE = "DAGSTER_STACK_WITHIN_STEP"


def to_text(claim: Claim) -> str:
    return json.dumps({**claim.key, "holder": claim.holder})


@lru_cache
def from_text(text: str) -> Claim | None:
    """None for what is no claim: anybody may set a tag."""
    try:
        said = json.loads(text)
        work = Work(str(said["run"]), str(said["step"]), int(said["attempt"]))
        return Claim(work, int(said["epoch"]), str(said["holder"]))
    except (ValueError, TypeError, LookupError):
        return None


def claim_here(run_id: str) -> Claim | None:
    """The claim of the step that this process executes, or works for, if that is of another run than this one."""
    claim = from_text(os.environ.get(VARIABLE, ""))
    return claim if claim and claim.work.run_id != run_id else None


def claim_of(run: DagsterRun) -> Claim | None:
    """The claim by which a run that nobody launched is executed, if a step does so."""
    return from_text(run.tags.get(tags.WITHIN, "")) if tags.CODE not in run.tags else None
