"""Why a goal is missed, as far as the figures themselves say. Needs nothing but Python."""

from collections.abc import Mapping

from bench.figures import Results
from bench.formatting import megabytes, milliseconds, seconds, times
from bench.goals import IO_MANAGER, PLAIN, Goal, outcomes
from bench.works import WORKS

#: Kinds of work that a reason names.
NAMED = 4


def missed(results: Results) -> list[tuple[Goal, str]]:
    """Each goal that is missed, with what the figures say about it."""
    return [(goal, reason(goal, results)) for goal, outcome in outcomes(results) if not outcome.met]


def reason(goal: Goal, results: Results) -> str:
    if goal.work in WORKS:
        return of_steps(goal.work, results)
    if results.transfer(IO_MANAGER, "put") and "S3" in goal.work:
        return of_transfer(results)
    if "Dagit" in goal.work or "backfill" in goal.work:
        return "see [launches and backfills](#launches-and-backfills)"
    if "scrape" in goal.work:
        return "see [monitoring](#monitoring)"
    return of_memory(results)


def of_steps(work: str, results: Results) -> str:
    """A run's step beside what a worker does for one."""
    step, profiles = results.step(work, "stack"), results.content.get("steps")
    if not (step and profiles):
        return "the parts of a step were not measured this time"
    kinds: Mapping[str, Mapping[str, float]] = profiles["stack"]["kinds"]
    busy = sum(kind["seconds"] for kind in kinds.values())
    largest = sorted(kinds, key=lambda name: -kinds[name]["seconds"])[:NAMED]
    parts = ", ".join(f"{name} {milliseconds(kinds[name]['seconds'])}" for name in largest)
    return (
        f"a step takes {milliseconds(step)} of the run; one no-op step by itself keeps a worker busy for"
        f" {milliseconds(busy)}, most of it with {parts}"
    )


def of_transfer(results: Results) -> str:
    """Which half it is."""
    halves = []
    for part in ("put", "get"):
        ours, plain = results.transfer(IO_MANAGER, part), results.transfer(PLAIN, part)
        if ours and plain:
            ratio = times(ours.median / plain.median)
            halves.append(f"the {part} takes {seconds(ours.median)}, {ratio} plain boto3's")
    return ", ".join(halves)


def of_memory(results: Results) -> str:
    services = results.content.get("memory", {}).get("services", {})
    return ", ".join(f"{name} {megabytes(size)}" for name, size in services.items())
