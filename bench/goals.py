"""The goals, each beside what was measured. Needs nothing but Python."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.figures import MB, Results
from bench.formatting import milliseconds, seconds
from bench.works import PARTITIONS, WORKS

PLAIN, IO_MANAGER, AWS_IO_MANAGER = WAYS = (
    "plain boto3",
    "this stack's IO manager",
    "dagster-aws's IO manager",
)


@dataclass(frozen=True)
class Outcome:
    """What was measured for a goal, and whether it is met."""

    measured: str
    met: bool


@dataclass(frozen=True)
class Goal:
    """A goal; `judge` gives None when what it needs was not measured."""

    work: str
    goal: str
    judge: Callable[[Results], Outcome | None]


def at_least(work: str, times: float) -> Callable[[Results], Outcome | None]:
    def judge(results: Results) -> Outcome | None:
        ratio = results.ratio(work, "stock", "stack")
        return Outcome(f"{ratio:.1f} × faster", ratio >= times) if ratio else None

    return judge


def at_most(work: str, times: float) -> Callable[[Results], Outcome | None]:
    def judge(results: Results) -> Outcome | None:
        ratio = results.ratio(work, "stack", "in_process")
        return Outcome(f"{ratio:.2f} × in-process", ratio <= times) if ratio else None

    return judge


def cost_of_a_step(results: Results) -> Outcome | None:
    many, few = results.step("parallel_1000", "stack"), results.step("parallel_50", "stack")
    return Outcome(f"{many / few:.2f} × ({1000 * many:.1f} ms)", many / few <= 1.2) if many and few else None


def short_chain(results: Results) -> Outcome | None:
    figure = results.seconds("chain_40_10ms", "stack")
    return Outcome(f"{figure.median:.2f} s", figure.median <= 3) if figure else None


def sleepers(results: Results) -> Outcome | None:
    figure = results.working_seconds("sleep_64", "stack")
    share = WORKS["sleep_64"].ideal / figure.median if figure else 0
    return Outcome(f"{share:.0%} ({figure.median:.2f} s)", share >= 0.9) if figure else None


def handed_over(results: Results) -> Outcome | None:
    ours, plain = results.transfer(IO_MANAGER, "put", "get"), results.transfer(PLAIN, "put", "get")
    if not (ours and plain):
        return None
    ratio = ours.median / plain.median
    return Outcome(f"{ratio:.2f} × ({ours.median:.2f} s)", ratio <= 1.2)


def launch(results: Results) -> Outcome | None:
    figure = results.launch("stack")
    return Outcome(seconds(figure.median), figure.median <= 2) if figure else None


def backfill(results: Results) -> Outcome | None:
    figure = results.backfill("stack")
    return Outcome(f"{figure.median:.1f} runs a second", figure.median >= 5) if figure else None


def scrape(results: Results) -> Outcome | None:
    found = results.content.get("scrape")
    return Outcome(milliseconds(found["median"]), found["median"] < 0.05) if found else None


def memory(name: str, most: int) -> Callable[[Results], Outcome | None]:
    def judge(results: Results) -> Outcome | None:
        size = results.content.get("memory", {}).get(name)
        return Outcome(f"{size / MB:,.0f} MB", size <= most) if size else None

    return judge


GOALS = (
    Goal("chain_21", "≥ 8 × faster than dagster-celery", at_least("chain_21", 8)),
    Goal("chain_21", "no slower than in-process", at_most("chain_21", 1)),
    Goal("parallel_50", "≥ 5 × faster than dagster-celery", at_least("parallel_50", 5)),
    Goal("parallel_50", "≤ 0.7 × in-process", at_most("parallel_50", 0.7)),
    Goal("parallel_1000", "a step ≤ 1.2 × one of 50", cost_of_a_step),
    Goal("chain_40_10ms", "≤ 3 s", short_chain),
    Goal("sleep_64", "≥ 90 % of the ideal 8 s once the first step has started", sleepers),
    Goal("flights", "faster than in-process", at_most("flights", 1)),
    Goal("200 MB through S3", "≤ 1.2 × plain boto3", handed_over),
    Goal("a launch in Dagit", "≤ 2 s to the first step", launch),
    Goal(f"a backfill of {PARTITIONS} no-op runs", "≥ 5 runs a second", backfill),
    Goal("a scrape with a million events", "< 50 ms of database time", scrape),
    Goal("a further worker", "≤ 150 MB of its own (PSS)", memory("further_worker", 150 * MB)),
    Goal("the whole idle stack", "≤ 2 GB (PSS)", memory("idle_stack", 2000 * MB)),
)


def outcomes(results: Results) -> list[tuple[Goal, Outcome]]:
    """Each goal for which something was measured."""
    return [(goal, outcome) for goal in GOALS if (outcome := goal.judge(results))]
