"""From samples to figures, goals, tables, pages and pictures."""

import re
from typing import Any

import pytest

from bench import charts, pages, rounds, transfer
from bench.figures import MB, Figure, Results, possible_speed_up
from bench.formatting import megabytes, milliseconds, seconds, spread
from bench.goals import AWS_IO_MANAGER, GOALS, IO_MANAGER, PLAIN, outcomes
from bench.tables import made
from bench.works import PARTITIONS, PARTS, PROCESS_A_STEP, WORKS
from scripts import bench
from scripts.console import ROOT, Failure
from scripts.markdown import table

WALK = {
    "announced": 0.01,
    "taken": 0.01,
    "started": 0.005,
    "loaded": 0.003,
    "stored": 0.005,
    "succeeded": 0.002,
}
KINDS = {"event writes": {"count": 2.0, "seconds": 0.002}, "job and plan": {"count": 1.0, "seconds": 0.001}}


def sample(work: str, variant: str, seconds: float, first_step: float = 0.1) -> dict[str, Any]:
    steps = {"split": 1.0, "month_01": 2.0, "month_02": 2.0}
    return {
        "work": work, "variant": variant, "seconds": seconds, "first_step": first_step, "cpu": seconds / 2,
        "steps": steps, "walk": WALK,
    }  # fmt: skip


def results(**content: Any) -> Results:
    """Of a machine on which everything takes as many seconds as it should."""
    run_seconds: dict[str, dict[str, float]] = {
        "chain_21": {"stack": 1, "stock": 24, "multiprocess": 50, "in_process": 3.5, "in_process_here": 0.9},
        "parallel_50": {"stack": 1.5, "stock": 15, "multiprocess": 60, "in_process": 4, "in_process_here": 1},
        "chain_40_10ms": {"stack": 2, "stock": 45, "in_process": 7, "in_process_here": 2},
        "flights": {"stack": 6, "stock": 18, "in_process": 12, "in_process_here": 10},
        "parallel_1000": {"stack": 30, "stock": 400, "in_process": 80, "in_process_here": 20},
        "sleep_64": {"stack": 8.6, "stock": 18},
    }
    samples = [
        sample(work, variant, factor * value)
        for work, variants in run_seconds.items()
        for variant, value in variants.items()
        for factor in (1, 0.9, 1.1)
    ]
    transfer = {"put": 1.0, "get": 0.5, "put_memory": 100 * MB, "get_memory": 200 * MB}
    return Results(
        {
            "date": "2026-01-02",
            "samples": samples,
            "notes": [],
            "transfers": [{"way": way, **transfer} for way in (PLAIN, IO_MANAGER, AWS_IO_MANAGER)],
            "steps": {"stack": {"kinds": KINDS}, "stock": {"kinds": KINDS}},
            "limits": {"write": 0.001, "read": 0.0001, "connect": 0.01, "put": 0.004, "get": 0.002, "events": 10, "bytes": 11_000},
            "memory": {"services": {"worker": 300 * MB}, "idle_stack": 1500 * MB, "further_worker": 140 * MB},
            "launches": [{"variant": "stack", "first_step": 0.4},
                         {"variant": "stock", "first_step": 3.4},
                         {"variant": "stock_5", "first_step": 5.4}],
            "backfills": [{"variant": "stack", "runs": 100, "seconds": 16},
                          {"variant": "stock", "runs": 100, "seconds": 125}],
            "scrape": {"events": 1_000_000, "first": 0.09, "median": 0.012, "highest": 0.03},
            "machine": {"processor": "one | two", "memory": "24 GiB"},
            **content,
        }
    )  # fmt: skip


def test_a_figure_is_the_median_with_what_it_lies_between() -> None:
    assert Figure.of([3, 1, 2]) == Figure(median=2, low=1, high=3, count=3)
    assert Figure.of([]) is None


def test_a_ratio_is_of_medians_and_there_is_none_without_both() -> None:
    found = results()

    assert found.ratio("chain_21", "stock", "stack") == pytest.approx(24)
    assert found.ratio("sleep_64", "in_process", "stack") is None
    assert found.step("parallel_1000", "stack") == pytest.approx(0.03)


def test_sleepers_count_from_the_start_of_the_first_step() -> None:
    found = results(samples=[sample("sleep_64", "stack", 10, first_step=1.5)])

    ((goal, outcome),) = [each for each in outcomes(found) if each[0].work == "sleep_64"]

    assert outcome.measured == "94% (8.50 s)"
    assert outcome.met, goal


def test_steps_in_parallel_are_divided_and_the_others_are_not() -> None:
    # 1 s that is not parallel, 4 s that are: 5 s become 3 s with two processes
    steps = {"split": 1.0, "month_01": 2.0, "month_02": 2.0}

    assert possible_speed_up(steps, "month_", 2) == pytest.approx(5 / 3)


def test_every_goal_is_judged_by_what_was_measured() -> None:
    assert all(outcome.met for _, outcome in outcomes(results()))
    assert len(outcomes(results())) == len(GOALS)


def test_a_goal_for_which_nothing_was_measured_is_left_out() -> None:
    part = results(
        samples=[sample("chain_40_10ms", "stack", 4)],
        transfers=[],
        memory={},
        launches=[],
        backfills=[],
        scrape=None,
    )

    ((goal, outcome),) = outcomes(part)

    assert (goal.work, outcome.measured, outcome.met) == ("chain_40_10ms", "4.00 s", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (seconds(0.1234), "0.12 s"),
        (seconds(9.99), "9.99 s"),
        (seconds(9.996), "10.0 s"),
        (seconds(123.4), "123 s"),
        (milliseconds(0.000023), "0.02 ms"),
        (milliseconds(0.01234), "12.3 ms"),
        (milliseconds(1.234), "1,234 ms"),
        (megabytes(1_482_400_000), "1,482 MB"),
        (spread(Figure(2, 1, 3, 3)), "1.00 s – 3.00 s"),
        (spread(Figure(2, 2, 2, 1)), ""),
    ],
)
def test_numbers_have_the_digits_that_count(text: str, expected: str) -> None:
    assert text == expected


def test_a_table_reads_as_text_too() -> None:
    assert table(["work", "time"], [["chain\nof 21", "1 s"], ["", "10 s"]], numbers=1).splitlines() == [
        "| work        | time |",
        "| ----------- | ---: |",
        "| chain of 21 |  1 s |",
        "|             | 10 s |",
    ]
    assert table(["name"], [["one | two"]]).splitlines()[-1] == r"| one \| two |"


def rows(name: str, title: str, found: Results | None = None) -> list[list[str]]:
    """The cells of those rows of a table that begin with a title."""
    lines = [line for line in made(found or results())[name].splitlines() if line.startswith(f"| {title}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_show_goals_figures_and_machine() -> None:
    (goal, *_) = rows("goals", "chain of 21")
    assert goal == ["chain of 21 no-op steps", "≥ 8 × faster than dagster-celery", "24.0 × faster", "yes"]
    (figures,) = rows("figures", "chain of 21")
    assert figures == [
        "chain of 21 no-op steps",
        "this stack",
        "1.00 s",
        "0.90 s – 1.10 s",
        "3",
        "47.6 ms",
        "1.00 ×",
    ]
    assert rows("flights", "")[-1] == ["2.00 ×", "1.67 ×", "1.67 ×", "0.50"]
    assert rows("machine", "m") == [["measured on", "2026-01-02"], ["memory", "24 GiB"]]


def test_a_table_shows_launches_and_backfills_beside_dagsters_own_launcher() -> None:
    assert rows("launches", "this stack") == [["this stack", "0.40 s", "", "6.2 runs a second"]]
    assert rows("launches", "Dagster's") == [
        ["Dagster's default launcher", "3.40 s", "", "0.8 runs a second"]
    ]


def test_a_table_shows_what_a_scrape_asks_of_the_database() -> None:
    assert rows("scrape", "database time")[0][1:] == ["12.0 ms", "30.0 ms", "90.0 ms"]


def test_a_slow_scrape_is_a_missed_goal() -> None:
    slow = results(scrape={"events": 1_000_000, "first": 0.09, "median": 0.06, "highest": 0.07})

    assert [goal.work for goal, outcome in outcomes(slow) if not outcome.met] == [
        "a scrape with a million events"
    ]


def test_a_missed_goal_and_a_failed_run_stand_in_the_tables() -> None:
    slow = [sample("chain_40_10ms", "stack", 4)]
    notes = [
        {"work": "chain_21", "variant": "stock", "note": "run 1 failed\nTraceback", "failed": True},
        {"work": "sleep_64", "variant": "", "note": "all is lost", "failed": True},
    ]
    found = results(samples=slow, notes=notes)

    assert rows("goals", "chain of 40", found)[0][1:] == ["≤ 3 s", "4.00 s", "**no**"]
    # And what nobody wanted to know is not said to be missing
    assert made(found)["not-measured"] == table(
        ["work", "executor", "why not"],
        [
            ["chain of 40 steps of 10 ms", "multiprocess", PROCESS_A_STEP],
            ["chain of 21 no-op steps", "dagster-celery", "run 1 failed"],
            ["64 steps that sleep 1 s, 8 workers", "", "all is lost"],
        ],
    )


def test_a_table_says_how_far_from_the_storages_a_step_is() -> None:
    # Two writes of 1 ms, a get of 2 ms, a put of 4 ms; a step takes 35 ms
    assert [row[1] for row in rows("limits", "**")] == ["8.0 ms", "35.0 ms"]
    assert rows("kinds", "event writes") == [["event writes", "2.0", "2.0 ms", "2.0", "2.0 ms"]]
    assert rows("walk", "**all") == [["**all of it**", "35.0 ms", "35.0 ms", "35.0 ms", "35.0 ms"]]


def test_of_what_was_not_measured_there_is_no_table() -> None:
    nothing = Results({"date": "2026-01-02", "notes": [], "machine": {}})

    assert {name for name, text in made(nothing).items() if text} == {"machine"}


# --- pages ---------------------------------------------------------------------------------------------

PAGES = {name: (ROOT / "docs" / name).read_text() for name in bench.PAGES}


def test_the_pages_have_a_place_for_every_table_and_show_every_picture() -> None:
    filled = pages.filled(PAGES, made(results()))

    assert "24.0 × faster" in filled["performance.md"]
    assert set(charts.draw(results())) == set(re.findall(r"\(pictures/(.+?)\)", "".join(PAGES.values())))


def test_the_page_names_every_work_and_part() -> None:
    assert [name for name in [*WORKS, *PARTS] if f"`{name}`" not in PAGES["performance.md"]] == []


@pytest.mark.parametrize(
    "text",
    [
        f"a backfill of {PARTITIONS} runs",
        f"{transfer.SIZE:,} random bytes",
        f"has spent {rounds.PATIENCE_SECS} s on a work",
    ],
)
def test_what_the_page_says_of_the_measurement_is_what_is_measured(text: str) -> None:
    assert text in " ".join(PAGES["performance.md"].split())


def test_pictures_are_pngs() -> None:
    assert all(data.startswith(b"\x89PNG") for data in charts.draw(results()).values())


def place(name: str, content: str = "old") -> str:
    return f"<!-- bench:{name} -->\n{content}\n<!-- /bench:{name} -->"


def test_only_what_is_between_marks_is_replaced() -> None:
    page = f"# Title\n\nBefore.\n{place('a')}\nBetween.\n\n{place('b')}\n\nAfter."

    # What would be a group of a regular expression is text
    filled = pages.filled({"page": page}, {"a": r"| \1 \g<0> |", "b": ""})["page"]

    expected = page.replace(place("a"), place("a", "\n| \\1 \\g<0> |\n")).replace(
        place("b"), place("b", "\nNot measured.\n")
    )
    assert filled == expected
    # And once more it is the same: no line is added
    assert pages.filled({"page": filled}, {"a": r"| \1 \g<0> |", "b": ""})["page"] == filled


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("no mark", "No place for the table `a`: add the lines <!-- bench:a --> and <!-- /bench:a --> to page.md"),
        (f"{place('a')}{place('z')}", "page.md: there is no table `z`. There are a, b."),
        (f"{place('a')}{place('a')}", "page.md has two places for the table `a`"),
        ("\n<!-- bench:a -->\nby hand", "page.md, line 2: <!-- bench:a --> is no half of a pair"),
        ("by hand\n<!-- /bench:a -->", "page.md, line 2: <!-- /bench:a --> is no half of a pair"),
        (f"<!-- bench:a -->\nby hand\n{place('a')}", "page.md, line 1: <!-- bench:a --> is no half of a pair"),
        (f"{place('a')}\n<!-- /bench:a -->\n{place('b')}", "page.md, line 4: <!-- /bench:a --> is no half of"),
        ("<!-- bench:a --><!-- bench:b --><!-- /bench:b --><!-- /bench:a -->", "page.md, line 1: <!-- bench:a -->"),
    ],
)  # fmt: skip
def test_a_page_whose_marks_are_not_right_is_refused_with_the_cure(page: str, reason: str) -> None:
    with pytest.raises(Failure, match=re.escape(reason)):
        pages.filled({"page.md": page, "other.md": place("b")}, {"a": "", "b": ""})
