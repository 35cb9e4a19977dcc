"""What a drill cost: counted from the event log, from the marks of the steps, and from the objects in S3."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tests.faults.marks import Mark

#: What becomes of a step, as the event log tells it.
SENT, STARTED, SUCCEEDED = "STEP_WORKER_STARTING", "STEP_START", "STEP_SUCCESS"


class Event(NamedTuple):
    """An event of a step in the log."""

    run_id: str
    step: str
    kind: str
    at: float


@dataclass(frozen=True)
class Reference:
    """What a run has when nothing is done to it: its steps, and its objects by name with their digests."""

    steps: frozenset[str]
    objects: Mapping[str, str]


@dataclass(frozen=True)
class Blow:
    """When a fault came and when it was over: a crash at once."""

    came: float
    over: float


@dataclass(frozen=True)
class Evidence:
    """All that is known after a drill of the runs that were its load."""

    #: The last status of each run.
    ends: Mapping[str, str]
    events: Collection[Event]
    marks: Collection[Mark]
    #: By run: the objects by name with their digests.
    objects: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Verdict:
    """The line of a drill in the table, and what is wrong, in words."""

    runs: int
    steps: int
    lost: int
    run_twice: int
    #: From the end of the fault until a step was sent, a step succeeded, and every step that was executing
    #: when the fault came had succeeded. None: one of these never happened.
    recovered_after: float | None
    complaints: tuple[str, ...]


def judge(evidence: Evidence, reference: Reference, blow: Blow, end: str = "SUCCESS") -> Verdict:
    """Compare what is with what would be without the fault; `end` is how the runs must have ended."""
    recorded = Counter((event.run_id, event.step) for event in evidence.events if event.kind == SUCCEEDED)
    begun = Counter((mark.run_id, mark.step) for mark in evidence.marks if mark.what == "begin")
    expected = {(run_id, step) for run_id in evidence.ends for step in reference.steps}
    lost = expected - set(recorded) if end == "SUCCESS" else set()
    complaints = [f"run {run_id} is {found}" for run_id, found in evidence.ends.items() if found != end]
    complaints += [f"{name(step)} has no success" for step in sorted(lost)]
    complaints += [f"{name(step)} succeeded {count} times" for step, count in recorded.items() if count > 1]
    complaints += [f"{name(step)} is of no run without faults" for step in sorted(set(recorded) - expected)]
    started = {(event.run_id, event.step) for event in evidence.events if event.kind == STARTED}
    complaints += [f"{name(step)} succeeded without a start" for step in sorted(set(recorded) - started)]
    complaints += [f"{name(step)} succeeded, unexecuted" for step in sorted(set(recorded) - set(begun))]
    if end == "SUCCESS":
        for run_id in evidence.ends:
            complaints += differences(run_id, evidence.objects.get(run_id, {}), reference.objects)
    return Verdict(
        runs=len(evidence.ends),
        steps=len(expected),
        lost=len(lost),
        run_twice=sum(count > 1 for count in begun.values()),
        recovered_after=recovery(evidence, blow),
        complaints=tuple(complaints),
    )


def recovery(evidence: Evidence, blow: Blow) -> float | None:
    """Seconds, as `Verdict.recovered_after` explains them; what was all done before is nothing to wait for."""
    ends = {(event.run_id, event.step): event.at for event in evidence.events if event.kind == SUCCEEDED}
    stricken = executing(evidence.marks, blow)
    if not stricken <= ends.keys():
        return None
    moments = [ends[step] for step in stricken]
    for kind in (SENT, SUCCEEDED):
        after = [event.at for event in evidence.events if event.kind == kind and event.at > blow.over]
        moments += [min(after)] if after else []
    return max(0.0, max(moments, default=blow.over) - blow.over)


def executing(marks: Collection[Mark], blow: Blow) -> set[tuple[str, str]]:
    """Run and step of the executions that the fault met: begun before it was over, not ended before it came."""
    ended = {mark[:1] + mark[2:5] for mark in marks if mark.what == "end" and mark.at < blow.came}
    return {
        (mark.run_id, mark.step)
        for mark in marks
        if mark.what == "begin" and mark.at < blow.over and mark[:1] + mark[2:5] not in ended
    }


def differences(run_id: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """How a run's objects differ from those of a run without faults."""
    missing = [f"run {run_id} lacks the object {key}" for key in sorted(wanted.keys() - found.keys())]
    more = [f"run {run_id} has the object {key} besides" for key in sorted(found.keys() - wanted.keys())]
    other = [
        f"run {run_id} has other data in {key}"
        for key in sorted(wanted.keys() & found.keys())
        if wanted[key] != found[key]
    ]
    return missing + more + other


def name(step: tuple[str, str]) -> str:
    return f"step {step[1]} of run {step[0]}"
