"""The tables of what was measured, by the names under which pages have them. Needs nothing but this checkout."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.figures import Results, possible_speed_up
from bench.formatting import megabytes, milliseconds, seconds, spread, times
from bench.goals import WAYS, outcomes
from bench.walk import MILESTONES, PARTS
from bench.works import LAUNCHERS, PARTITIONS, VARIANT_TITLES, WORKS
from scripts import markdown

#: The executors whose steps are followed.
FOLLOWED = ("stock", "stack", "in_process", "in_process_here")


@dataclass(frozen=True)
class Table:
    """What it shows, in the terminal; `make` gives "" when nothing of it was measured."""

    title: str
    make: Callable[[Results], str]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    found = list(rows)
    return markdown.table(head, found, numbers) if found else ""


def title(work: str) -> str:
    return WORKS[work].title if work in WORKS else work


# --- works --------------------------------------------------------------------------------------------


def goals(results: Results) -> str:
    rows = [
        [title(goal.work), goal.goal, outcome.measured, "yes" if outcome.met else "**no**"]
        for goal, outcome in outcomes(results)
    ]
    return table(["work", "goal", "measured", "met"], rows)


def figures(results: Results) -> str:
    rows = []
    for work in WORKS:
        name = WORKS[work].title
        for variant, executor in VARIANT_TITLES.items():
            figure, step = results.seconds(work, variant), results.step(work, variant)
            if figure and step:
                ratio = results.ratio(work, variant, "stack")
                rows.append([
                    name, executor, seconds(figure.median), spread(figure), str(figure.count),
                    milliseconds(step), times(ratio) if ratio else "",
                ])  # fmt: skip
                name = ""
    head = ["work", "executor", "median", "lowest – highest", "runs", "a step", "× this stack"]
    return table(head, rows, numbers=5)


def not_measured(results: Results) -> str:
    rows = [
        [work.title, VARIANT_TITLES[variant], reason]
        for name, work in WORKS.items()
        if results.seconds(name, "stack")
        for variant, reason in work.left_out.items()
    ]
    rows += [
        [title(note["work"]), VARIANT_TITLES.get(note["variant"], ""), note["note"].splitlines()[0]]
        for note in results.content["notes"]
    ]
    return table(["work", "executor", "why not"], rows)


def flights(results: Results) -> str:
    """How far the second core helps: the months are parallel, the rest is not."""
    own, here = (results.ratio("flights", variant, "stack") for variant in ("in_process", "in_process_here"))
    samples = results.samples_of("flights", "in_process_here")
    if not (own and here and samples):
        return ""
    bound = median(possible_speed_up(each["steps"], "month_", 2) for each in samples)
    cores = median(each["cpu"] / each["seconds"] for each in samples)
    head = [
        "in one process",
        "there on this stack's storages",
        "gain that two processes allow",
        "cores that one process keeps busy",
    ]
    return table(head, [[times(own), times(here), times(bound), f"{cores:.2f}"]], numbers=4)


# --- launches, monitoring, objects, memory ---------------------------------------------------------------


def launches(results: Results) -> str:
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
    return table(head, rows, numbers=3)


def scrape(results: Results) -> str:
    found = results.content.get("scrape")
    if not found:
        return ""
    row = [
        "database time of a scrape",
        *(milliseconds(found[name]) for name in ("median", "highest", "first")),
    ]
    return table(["", "median", "highest", "the first one"], [row], numbers=3)


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
        [name, megabytes(found[key])]
        for key, name in (("idle_stack", "**the whole idle stack**"), ("further_worker", "**a further worker**"))
        if key in found
    ]  # fmt: skip
    return table(["", "PSS"], rows, numbers=1)


def machine(results: Results) -> str:
    found = {"measured on": results.content["date"], **results.content["machine"]}
    return table(["", ""], [[name, str(value)] for name, value in found.items()])


# --- one step ------------------------------------------------------------------------------------------


def walk(results: Results) -> str:
    walks = {variant: walk for variant in FOLLOWED if (walk := results.walk(variant))}
    if not walks:
        return ""
    rows = [
        [PARTS[name], *(milliseconds(walk[name]) if name in walk else "" for walk in walks.values())]
        for name in MILESTONES
    ]
    rows.append(["**all of it**", *(milliseconds(sum(walk.values())) for walk in walks.values())])
    return table(["", *(VARIANT_TITLES[variant] for variant in walks)], rows, numbers=len(walks))


def kinds(results: Results) -> str:
    steps = results.content.get("steps")
    if not steps:
        return ""
    before, after = (steps[variant]["kinds"] for variant in ("stock", "stack"))
    names = sorted({*before, *after}, key=lambda name: -before.get(name, {}).get("seconds", 0))
    rows = [[name, *cells(before.get(name)), *cells(after.get(name))] for name in names]
    sums = [milliseconds(sum(kind["seconds"] for kind in each.values())) for each in (before, after)]
    rows.append(["**all of it**", "", sums[0], "", sums[1]])
    return table(["", "before: times", "time", "after: times", "time"], rows, numbers=4)


def cells(kind: Mapping[str, float] | None) -> list[str]:
    return [f"{kind['count']:.1f}", milliseconds(kind["seconds"])] if kind else ["", ""]


def limits(results: Results) -> str:
    """What the storages take, and a step beside the least that it can take."""
    found = results.content.get("limits")
    if not found:
        return ""
    rows = [
        [f"one write of {found['events'] / 2:.0f} events, committed", found["write"]],
        ["one read from the database", found["read"]],
        ["a new database connection", found["connect"]],
        ["S3: a put of 5 bytes", found["put"]],
        ["S3: a get of them", found["get"]],
        [LEAST, 2 * found["write"] + found["get"] + found["put"]],
    ]
    if parts := results.walk("stack"):
        rows.append([STEP, sum(parts.values())])
    return table(["operation", "time"], [[name, milliseconds(value)] for name, value in rows], numbers=1)


LEAST = "**the least that a step can take**: two writes, a get, a put"
STEP = "**a step of the chain**, from one success to the next"

#: In the order of the pages, and of the terminal.
TABLES = {
    "goals": Table("Goals", goals),
    "figures": Table("All figures", figures),
    "not-measured": Table("Not measured", not_measured),
    "flights": Table("`flights`, times what it takes with this stack", flights),
    "launches": Table("Launches and backfills", launches),
    "scrape": Table("Monitoring, with a million events", scrape),
    "transfers": Table("200 MB through S3", transfers),
    "memory": Table("Memory", memory),
    "machine": Table("The machine", machine),
    "walk": Table("From one step's success to the next, in a chain of 21", walk),
    "kinds": Table("Inside the worker", kinds),
    "limits": Table("The storages' own limit", limits),
}


def made(results: Results) -> dict[str, str]:
    """Every table by its name; "" when nothing of it was measured."""
    return {name: table.make(results) for name, table in TABLES.items()}
