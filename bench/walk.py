"""A chain's steps on their way, from the times in the event log: where the time between two successes goes."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

#: What happens to a step, in order; each is the end of the part of the way that it names.
ANNOUNCED, TAKEN, STARTED, LOADED, COMPUTED, STORED, SUCCEEDED = MILESTONES = (
    "announced",
    "taken",
    "started",
    "loaded",
    "computed",
    "stored",
    "succeeded",
)
#: What is between a milestone and the one before it; before the first stands the success of the step before.
PARTS = {
    ANNOUNCED: "the run learns of the success before it, and announces the step",
    TAKEN: "its message reaches a worker, which gets ready for it",
    STARTED: "plan, context, resources, capture of its output",
    LOADED: "its input comes from S3",
    COMPUTED: "its own code",
    STORED: "its output goes to S3",
    SUCCEEDED: "its success is written",
}


@dataclass(frozen=True)
class Mark:
    """A milestone of a step, at a time in seconds."""

    at: float
    step: str
    milestone: str


def walk(marks: Iterable[Mark]) -> dict[str, float]:
    """Mean seconds of each part of the way, over the steps of a chain but the first.

    A milestone that an executor does not tell of has no part: its time is in the next one.
    """
    parts: dict[str, list[float]] = {}
    last_success: float | None = None
    steps = by_step(marks)
    for times in sorted(steps.values(), key=lambda times: times[SUCCEEDED]):
        if last_success is not None:
            before = last_success
            for milestone in MILESTONES:
                if milestone in times:
                    parts.setdefault(milestone, []).append(times[milestone] - before)
                    before = times[milestone]
        last_success = times[SUCCEEDED]
    # Over all steps, also where some step has no such milestone: the parts add up to the whole.
    return {name: sum(seconds) / (len(steps) - 1) for name, seconds in parts.items()}


def by_step(marks: Iterable[Mark]) -> dict[str, dict[str, float]]:
    """Each step's milestones: the first of a kind counts; steps that did not succeed are left out."""
    steps: dict[str, dict[str, float]] = {}
    for mark in marks:
        steps.setdefault(mark.step, {}).setdefault(mark.milestone, mark.at)
    return {step: times for step, times in steps.items() if SUCCEEDED in times}


def mean_walk(walks: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of several walks by the same executor; empty without any."""
    found = list(walks)
    names = [name for name in MILESTONES if any(name in each for each in found)]
    return {name: mean(each.get(name, 0.0) for each in found) for name in names}
