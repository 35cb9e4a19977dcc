"""`docs/performance.md`: what was measured, beside the goals. Needs nothing but this checkout."""

from collections.abc import Iterator, Mapping
from statistics import median
from textwrap import fill
from typing import Any

from bench import reasons
from bench.charts import EXECUTORS
from bench.figures import Results, possible_speed_up
from bench.formatting import megabytes, milliseconds, seconds, spread, times
from bench.goals import WAYS, outcomes
from bench.works import LAUNCHERS, PARTITIONS, VARIANT_TITLES, WORKS
from scripts.markdown import table

#: Characters of a line of text.
WIDTH = 116

TEMPLATE = """\
# Performance

Written by `make bench` on {date}. Change nothing here: the next one writes it anew.

All in one run on one machine, the executors in turn, so that whatever disturbed it disturbed all of them. A duration
is the time from RUN_START to RUN_SUCCESS in the event log; figures are medians.

## Goals

{goals}
{missed}{one_process}
![How long each work takes with each executor](pictures/{picture})

## All figures

{figures}

"× this stack" is how many times as long it takes as with this stack's executor.
{notes}
{flights}{launches}{scrape}
## 200 MB through S3

A step's output of {size} random bytes, stored and loaded again by each of the ways in turn. Memory is the most that
a process had above what it had before; a load must hold the object itself.

{transfers}

## Memory

{memory}

PSS counts a page that several processes share in parts. A further worker is what the sum over all containers grew by
when six workers joined the {workers} that were there, divided by six; idle, with the code loaded.

Where the time of one step goes, before and after: [where a step's time goes](where-a-step-goes.md).

## What is compared

- **this stack**: `dagster_stack.celery_executor` with this stack's `dagster.yaml` and IO manager, on {workers} workers of one process.
- **dagster-celery**: its executor on the same workers, with Dagster's own parts: `dagster-postgres`'s storage,
  `dagster-aws`'s compute logs and IO manager ([dagster.yaml](../bench/dagster.yaml)).
- **multiprocess**, **in-process**: Dagster's own executors in one container, with the same parts of Dagster's own.
- **in-process on this stack's storages**: the same executor with this stack's `dagster.yaml` and IO manager: what a
  user of this stack gets who needs no second process.

All of them use the same Postgres and the same S3. A run is driven by a process in the service `cli`, forked from one
that has the code loaded, as a runner has it; what a launch takes before RUN_START is not in the figures. Processes are
warm: each executor's workers have executed steps before. An executor that has spent {patience:.0f} s on a work does not get it
again, so slow ones have fewer measurements.

## The machine

{machine}

## Again

```sh
make up
make bench                                      # everything; writes this page
make bench ROUNDS=3 WORK=chain_21,parallel_50   # a part; prints the table only
```

{works}"""


def page(results: Results) -> str:
    content = results.content
    return TEMPLATE.format(
        date=content["date"],
        goals=goals(results),
        missed=missed(results),
        one_process=one_process(results),
        picture=EXECUTORS,
        figures=figures(results),
        notes=notes(results),
        flights=flights(results),
        launches=launches_section(results),
        scrape=scrape_section(results),
        size=f"{content['transfer_size']:,}",
        transfers=transfers(results),
        memory=memory(results),
        workers=WORKS["chain_21"].workers,
        patience=content["patience"],
        machine=machine(results),
        works=paragraph(
            f"`WORK` may name {', '.join(f'`{name}`' for name in content['measured'])}. The workers are scaled to 2 and"
            " to 8 and back, and the runs that were made are removed."
        ).lstrip(),
    )


def goals(results: Results) -> str:
    rows = [
        [
            title(goal.work),
            goal.goal,
            outcome.measured,
            "yes" if outcome.met else "**no**",
        ]
        for goal, outcome in outcomes(results)
    ]
    return table(["work", "goal", "measured", "met"], rows)


def missed(results: Results) -> str:
    lines = [f"- {title(goal.work)}, {goal.goal}: {why}." for goal, why in reasons.missed(results)]
    return "\n".join(["", "What is missed:", "", *lines, ""]) if lines else ""


def one_process(results: Results) -> str:
    """Where workers don't pay: said, since the goals compare with Dagster's own storages alone."""
    faster = [
        f"{WORKS[work].title} {times(ratio)}"
        for work in WORKS
        if (ratio := results.ratio(work, "stack", "in_process_here")) and ratio > 1
    ]
    if not faster:
        return ""
    return paragraph(
        "In-process profits from this stack's storages as well. There it is faster than its workers where steps do next to"
        f" nothing, since it sends no messages. So much longer it takes with workers: {'; '.join(faster)}."
    )


def paragraph(text: str) -> str:
    return f"\n{fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)}\n"


def title(work: str) -> str:
    return WORKS[work].title if work in WORKS else work


def figures(results: Results) -> str:
    return table(
        ["work", "executor", "median", "lowest – highest", "runs", "a step", "× this stack"],
        figure_rows(results),
        numbers=5,
    )


def figure_rows(results: Results) -> Iterator[list[str]]:
    for work in WORKS:
        name = WORKS[work].title
        for variant, executor in VARIANT_TITLES.items():
            figure, step = results.seconds(work, variant), results.step(work, variant)
            if figure and step:
                ratio = results.ratio(work, variant, "stack")
                yield [
                    name, executor, seconds(figure.median), spread(figure), str(figure.count),
                    milliseconds(step), times(ratio) if ratio else "",
                ]  # fmt: skip
                name = ""


def notes(results: Results) -> str:
    """What is not in the table, and why."""
    left_out: dict[tuple[str, str], list[str]] = {}
    for work in WORKS.values():
        for variant, reason in work.left_out.items():
            left_out.setdefault((VARIANT_TITLES[variant], reason), []).append(work.title)
    lines = [
        f"- Not measured with {executor}: {'; '.join(works)} ({reason})."
        for (executor, reason), works in left_out.items()
    ]
    lines += [f"- {note_title(note)}: {note['note'].splitlines()[0]}." for note in results.content["notes"]]
    return "\n".join(["", *lines, ""])


def note_title(note: Mapping[str, Any]) -> str:
    """The work, and its executor where the note is of one."""
    variant = VARIANT_TITLES.get(note["variant"])
    return f"{title(note['work'])}, {variant}" if variant else title(note["work"])


def flights(results: Results) -> str:
    """How far the second core helps: the months are parallel, the rest is not."""
    own, here = (results.ratio("flights", variant, "stack") for variant in ("in_process", "in_process_here"))
    samples = results.samples_of("flights", "in_process_here")
    if not (own and here and samples):
        return ""
    bound = median(possible_speed_up(each["steps"], "month_", 2) for each in samples)
    cores = median(each["cpu"] / each["seconds"] for each in samples)
    return paragraph(
        f"`flights` takes {times(own)} as long in one process, {times(here)} on this stack's storages: so much does the"
        f" second core bring. Twice is out of reach. Only the twelve months are parallel, which makes {times(bound)}"
        f" the most that two processes can bring; and one process keeps {cores:.2f} cores busy already: DuckDB"
        " has threads of its own."
    )


LAUNCHES = """
## Launches and backfills

From Dagit's answer to a launch until the first step starts, on an idle stack; and a backfill of {partitions} runs of one
step that does nothing, from its submission to the end of its last run. Dagster's default launcher starts a process for
each run; here with its own daemon and webserver on the same machine and Postgres, a job that executes its step in that
process, and as many runs at once.

{table}
{bounds}"""
#: What was found by looking where the time goes; the figures are above.
LAUNCH_BOUNDS = (
    "A launch waits for the run queue's next look. Dagster's loop waits in steps of half a second and takes whole seconds"
    " as interval, 5 if nothing is set; here it is half a second (`dequeue_interval_seconds` in dagster.yaml), a quarter at the"
    " median. Then the daemon sends one message and a warm runner takes it: there is no process to start.",
    "What bounds a backfill, in the order in which it is met. Dagster's daemon looks for new backfills every 30 s"
    " (`DEFAULT_DAEMON_INTERVAL_SECONDS`, no setting; 3 s here, see dagster_stack/services/daemon.py). It submits 25 runs and then"
    " sleeps 1 s (`CHECKPOINT_COUNT`, `CHECKPOINT_INTERVAL` in `dagster/_core/execution/job_backfill.py`, unchanged here); of a"
    " single thread each run costs one question to the code's process and some commits to Postgres (`num_submit_workers: 4` in"
    " dagster.yaml). A look of the run queue starts as many runs as there is room for: with the limit of 6 runs of"
    " a backfill, which leaves room for others, and two looks a second, at most 12 a second. With the default launcher it is"
    " the processor: each run imports Dagster and the code anew.",
)


def launches_section(results: Results) -> str:
    rows = launches(results)
    bounds = "".join(paragraph(text) for text in LAUNCH_BOUNDS)
    return LAUNCHES.format(partitions=PARTITIONS, table=rows, bounds=bounds) if rows else ""


def launches(results: Results) -> str:
    """Empty when nothing of it was measured."""
    rows = []
    for variant, launcher in LAUNCHERS.items():
        launch, backfill = results.launch(variant), results.backfill(variant)
        if launch or backfill:
            rows.append([
                launcher,
                seconds(launch.median) if launch else "",
                spread(launch) if launch else "",
                f"{backfill.median:.1f} runs a second" if backfill else "",
            ])  # fmt: skip
    head = ["launcher", "to the first step", "lowest – highest", f"backfill of {PARTITIONS}"]
    return table(head, rows, numbers=3) if rows else ""


SCRAPE = """
## Monitoring

What one scrape of the service `metrics` asks of the database when the event log holds {events} events and grows by a
hundred a second. The first one of a new process also reads what is under way.

{table}
"""


def scrape_section(results: Results) -> str:
    rows = scrape(results)
    return SCRAPE.format(events=f"{results.content['scrape']['events']:,}", table=rows) if rows else ""


def scrape(results: Results) -> str:
    """Empty when it was not measured."""
    found = results.content.get("scrape")
    if not found:
        return ""
    figures = [milliseconds(found[name]) for name in ("median", "highest", "first")]
    return table(
        ["", "median", "highest", "the first one"], [["database time of a scrape", *figures]], numbers=3
    )


def transfers(results: Results) -> str:
    rows = []
    for way in WAYS:
        put, get, both = (results.transfer(way, *parts) for parts in (["put"], ["get"], ["put", "get"]))
        storing, loading = results.transfer(way, "put_memory"), results.transfer(way, "get_memory")
        if put and get and both and storing and loading:
            rows.append([
                way, seconds(put.median), seconds(get.median), seconds(both.median), spread(both),
                megabytes(storing.high), megabytes(loading.high),
            ])  # fmt: skip
    head = ["way", "put", "get", "both", "lowest – highest", "memory to store", "to load"]
    return table(head, rows, numbers=6)


def memory(results: Results) -> str:
    found = results.content.get("memory", {})
    rows = [[f"service `{name}`", megabytes(size)] for name, size in found.get("services", {}).items()]
    rows += [
        [title, megabytes(found[name])]
        for name, title in (("idle_stack", "**the whole idle stack**"), ("further_worker", "**a further worker**"))
        if name in found
    ]  # fmt: skip
    return table(["", "PSS"], rows, numbers=1)


def machine(results: Results) -> str:
    return table(["", ""], [[name, str(value)] for name, value in results.content["machine"].items()])
