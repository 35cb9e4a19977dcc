"""From samples to figures, goals, tables, pages and pictures."""

import re
from typing import Any

import pytest

from bench import charts, report, where
from bench.figures import MB, Figure, Results, possible_speed_up
from bench.formatting import megabytes, milliseconds, seconds, spread
from bench.goals import AWS_IO_MANAGER, GOALS, IO_MANAGER, PLAIN, outcomes
from bench.works import PARTS, WORKS
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
            "measured": [*WORKS, *PARTS],
            "samples": samples,
            "notes": [],
            "patience": 45,
            "transfers": [{"way": way, **transfer} for way in (PLAIN, IO_MANAGER, AWS_IO_MANAGER)],
            "transfer_size": 200 * MB,
            "steps": {"stack": {"kinds": KINDS}, "stock": {"kinds": KINDS}},
            "limits": {"write": 0.001, "read": 0.0001, "connect": 0.01, "put": 0.004, "get": 0.002, "events": 10, "bytes": 11_000},
            "memory": {"services": {"worker": 300 * MB}, "idle_stack": 1500 * MB, "further_worker": 140 * MB},
            "launches": [{"variant": "stack", "run_start": 0.3, "first_step": 0.4},
                         {"variant": "stock", "run_start": 3.0, "first_step": 3.4},
                         {"variant": "stock_5", "run_start": 5.0, "first_step": 5.4}],
            "backfills": [{"variant": "stack", "runs": 100, "submitted": 5, "seconds": 16},
                          {"variant": "stock", "runs": 100, "submitted": 20, "seconds": 125}],
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


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the table rows that begin with a title."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {title}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_shows_goals_figures_machine_and_how_to_repeat_it() -> None:
    page = report.page(results())

    assert ["chain of 21 no-op steps", "≥ 8 × faster than dagster-celery", "24.0 × faster", "yes"] in rows(
        page, "chain of 21"
    )
    assert ["chain of 21 no-op steps", "this stack", "1.00 s", "0.90 s – 1.10 s", "3", "47.6 ms", "1.00 ×"] in rows(
        page, "chain of 21"
    )  # fmt: skip
    assert "Not measured with multiprocess: chain of 40 steps of 10 ms; `flights`" in page
    assert "`flights` takes 2.00 × as long in one process, 1.67 × on this stack's storages" in page
    assert "24 GiB" in page
    assert "make bench ROUNDS=3 WORK=chain_21,parallel_50" in page
    assert "**no**" not in page
    assert not re.search(r"\{\w*\}", page)


def test_the_page_shows_launches_and_backfills_beside_dagsters_own_launcher() -> None:
    page = report.page(results())

    rows = [line.split("|")[1:-1] for line in page.splitlines() if "launcher" in line or "16 s" in line]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 4}
    assert cells["Dagster's default launcher"] == ["3.40 s", "", "0.8 runs a second"]
    assert "a launch in Dagit" in page
    assert "6.2 runs a second" in page


def test_a_page_without_launches_says_nothing_of_them() -> None:
    assert "Launches and backfills" not in report.page(results(launches=[], backfills=[]))


def test_the_page_shows_what_a_scrape_asks_of_the_database() -> None:
    page = report.page(results())

    assert "the event log holds 1,000,000 events" in page
    (row,) = [line for line in page.splitlines() if "database time of a scrape" in line]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["12.0 ms", "30.0 ms", "90.0 ms"]
    assert "## Monitoring" not in report.page(results(scrape=None))


def test_a_slow_scrape_is_a_missed_goal() -> None:
    slow = results(scrape={"events": 1_000_000, "first": 0.09, "median": 0.06, "highest": 0.07})

    assert [goal.work for goal, outcome in outcomes(slow) if not outcome.met] == [
        "a scrape with a million events"
    ]
    assert "#monitoring" in report.missed(slow)


def test_a_slow_backfill_is_a_missed_goal_with_its_reason() -> None:
    slow = results(backfills=[{"variant": "stack", "runs": 100, "submitted": 5, "seconds": 50}])

    assert "#launches-and-backfills" in report.missed(slow)


def test_a_missed_goal_and_a_failed_run_stand_on_the_page() -> None:
    slow = [sample("chain_40_10ms", "stack", 4)]
    notes = [
        {"work": "chain_21", "variant": "stock", "note": "run 1 failed\nTraceback", "failed": True},
        {"work": "sleep_64", "variant": "", "note": "all is lost", "failed": True},
    ]

    page = report.page(results(samples=slow, notes=notes))

    assert rows(page, "chain of 40")[0][1:] == ["≤ 3 s", "4.00 s", "**no**"]
    assert "- chain of 40 steps of 10 ms, ≤ 3 s: a step takes 100 ms of the run;" in page
    assert "keeps a worker busy for 3.0 ms, most of it with event writes 2.0 ms, job and plan 1.0 ms." in page
    assert "- chain of 21 no-op steps, dagster-celery: run 1 failed." in page
    assert "- 64 steps that sleep 1 s, 8 workers: all is lost." in page
    assert "Traceback" not in page


def test_a_missed_goal_is_explained_by_the_part_that_misses_it() -> None:
    slow = {"put": 3.0, "get": 0.5, "put_memory": 1, "get_memory": 1}
    transfers = [*results().content["transfers"], {"way": IO_MANAGER, **slow}, {"way": IO_MANAGER, **slow}]

    page = report.page(
        results(transfers=transfers, memory={"services": {"dagit": 3 * MB}, "idle_stack": 3000 * MB})
    )

    assert (
        "≤ 1.2 × plain boto3: the put takes 3.00 s, 3.00 × plain boto3's, the get takes 0.50 s, 1.00 ×"
        in page
    )
    assert "≤ 2 GB (PSS): dagit 3 MB." in page


def test_where_one_process_is_faster_than_workers_the_page_says_so() -> None:
    page = " ".join(report.page(results()).split())

    assert (
        "So much longer it takes with workers: chain of 21 no-op steps 1.11 ×; 50 parallel no-op steps 1.50 ×"
        in page
    )


def test_the_other_page_says_how_far_from_the_storages_a_step_is() -> None:
    page = where.page(results())

    # Two writes of 1 ms, a get of 2 ms, a put of 4 ms; a step takes 35 ms
    assert "event writes, a get\nand a put: 8.0 ms." in page
    assert "35.0 ms from one success to the next, 4.38 × that" in page
    assert rows(page, "event writes")[0] == ["event writes", "2.0", "2.0 ms", "2.0", "2.0 ms"]
    assert not re.search(r"\{\w*\}", page)


def test_the_pages_show_the_pictures_that_are_drawn() -> None:
    pictures = charts.draw(results())

    shown = set(re.findall(r"\(pictures/(.+?)\)", report.page(results()) + where.page(results())))
    assert set(pictures) == shown
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())
