"""`docs/where-a-step-goes.md`: one step's time, before and after. Needs nothing but this checkout."""

from collections.abc import Mapping
from typing import Any

from bench.charts import STEP
from bench.figures import Results
from bench.formatting import milliseconds, times
from bench.walk import MILESTONES, PARTS
from bench.works import VARIANT_TITLES
from scripts.markdown import table

SHOWN = ("stock", "stack", "in_process", "in_process_here")

TEMPLATE = """\
# Where a step's time goes

Written by `make bench` on {date}, on the machine and with the versions of [performance.md](performance.md). Change
nothing here: the next one writes it anew.

The step is one of the chain of 21 no-op steps: it loads a number from S3, adds one, stores it in S3. "Before" is
Dagster's own way: dagster-celery's executor with Dagster's own storages; "after" is this stack's.

## From one success to the next

By the times in the event log of the runs that [performance.md](performance.md) shows: means over all steps but the first.

{walk}

![The same as a picture](pictures/{picture})

What only executors with workers do is empty for the others. "Announced" stands in the log before the message is sent.

## Inside the worker

The same chain, its steps executed one after the other in one process by the worker's own code, with a timer around
each kind of work; time that belongs to an inner kind is not counted for the outer one. Messages are not in here, so it
is less than what is between two successes; the timers themselves make it a little slower.

{kinds}

## How far from the storages' own limit

The same operations by themselves, on connections that stand, with the bytes of a real step, medians of 200:

{limits}

No executor that stores a step's start and end, its input and its output can take less than two event writes, a get
and a put: {floor}. A step of the chain takes {whole} from one success to the next, {ratio} that.
{distance}

## Again

`make bench WORK=chain_21,steps` measures it and prints it; `make bench` writes this page. The timers are in
`bench/profiling.py`, the parts of the way in `bench/walk.py`.
"""


def page(results: Results) -> str:
    found = floor(results)
    whole = sum(results.walk("stack").values())
    return TEMPLATE.format(
        date=results.content["date"],
        picture=STEP,
        walk=walk_table(results),
        kinds=kinds_table(results),
        limits=limits_table(results.content["limits"]),
        floor=milliseconds(found),
        whole=milliseconds(whole),
        ratio=times(whole / found),
        distance=distance(results, whole - found),
    )


def walk_table(results: Results) -> str:
    walks = {variant: walk for variant in SHOWN if (walk := results.walk(variant))}
    rows = [
        [PARTS[name], *(milliseconds(walk[name]) if name in walk else "" for walk in walks.values())]
        for name in MILESTONES
    ]
    rows.append(["**all of it**", *(milliseconds(sum(walk.values())) for walk in walks.values())])
    return table(["", *(VARIANT_TITLES[variant] for variant in walks)], rows, numbers=len(walks))


def kinds_table(results: Results) -> str:
    before, after = (results.content["steps"][variant]["kinds"] for variant in ("stock", "stack"))
    names = sorted({*before, *after}, key=lambda name: -before.get(name, {}).get("seconds", 0))
    rows = [[name, *cells(before.get(name)), *cells(after.get(name))] for name in names]
    rows.append(["**all of it**", "", milliseconds(own(before)), "", milliseconds(own(after))])
    return table(["", "before: times", "time", "after: times", "time"], rows, numbers=4)


def cells(kind: Mapping[str, float] | None) -> list[str]:
    return [f"{kind['count']:.1f}", milliseconds(kind["seconds"])] if kind else ["", ""]


def own(kinds: Mapping[str, Any]) -> float:
    return float(sum(kind["seconds"] for kind in kinds.values()))


def limits_table(limits: Mapping[str, float]) -> str:
    rows = [
        [f"one write of {limits['events'] / 2:.0f} events, committed", milliseconds(limits["write"])],
        ["one read from the database", milliseconds(limits["read"])],
        ["a new database connection", milliseconds(limits["connect"])],
        ["S3: a put of 5 bytes", milliseconds(limits["put"])],
        ["S3: a get of them", milliseconds(limits["get"])],
    ]
    return table(["operation", "time"], rows, numbers=1)


def floor(results: Results) -> float:
    """The least that a step's storing takes."""
    limits = results.content["limits"]
    return float(2 * limits["write"] + limits["get"] + limits["put"])


def distance(results: Results, beyond: float) -> str:
    """What the rest is, by the parts that are the largest."""
    walk = results.walk("stack")
    largest = sorted(walk, key=lambda name: -walk[name])[:2]
    parts = ", ".join(f"{milliseconds(walk[name])}: {PARTS[name]}" for name in largest)
    return f"The largest parts of the {milliseconds(beyond)} above it: {parts}."
