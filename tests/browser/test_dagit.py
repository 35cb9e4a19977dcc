"""Dagit as a person uses it: launch, watch, read a step's output; each stop leaves a screenshot."""

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.stack.stack import Stack

#: Milliseconds that the run of 50 steps may take on a busy machine.
RUN_MS = 240_000
STEPS = 50


def test_a_run_is_launched_watched_and_read_in_dagit(stack: Stack, page: Page, screenshots: Path) -> None:
    # Given the Launchpad of parallel_pipeline
    page.goto(f"{stack.dagit_url}/locations/pipelines/jobs/parallel_pipeline/playground")
    expect(page.get_by_text("No errors", exact=True)).to_be_visible()
    page.screenshot(path=screenshots / "launchpad.png")

    # When the run is launched
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))

    # Then Dagit shows it through to its end, with 50 green steps
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_text(re.compile(rf"Succeeded \({STEPS}\)"))).to_be_visible()
    expect(page.get_by_text("Errored (0)")).to_be_visible()
    page.screenshot(path=screenshots / "gantt.png")

    # And what a step printed is there, from S3, behind the link in its event
    page.get_by_role("link", name="View stdout / stderr").last.click()
    page.get_by_role("button", name="stdout").click()
    expect(page.get_by_text(re.compile("not much, done by [0-9a-f]+"))).to_be_visible()
    page.screenshot(path=screenshots / "stdout.png")


def test_the_asset_graph_and_a_launched_report_are_worth_opening(
    stack: Stack, page: Page, screenshots: Path
) -> None:
    # Given a finished run of the flights
    run_id = stack.succeed("flights")
    link = stack.metadata(run_id, "report")["report"]

    # When its report is opened by the address in Dagit's metadata
    page.goto(link)

    # Then it shows the totals, and its picture is no broken image
    expect(page.get_by_text("336,776")).to_be_visible()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 500)")
    assert page.evaluate("document.images.length") >= 1
    page.screenshot(path=screenshots / "report.png")

    # And the assets of the same data are drawn, by the group's own address: the overview's collapsed
    # groups change their labels while their state loads, so that a click on one is a race
    page.set_viewport_size({"width": 2000, "height": 900})
    page.goto(f"{stack.dagit_url}/locations/pipelines/asset-groups/flights")
    for asset in ("raw_flights", "checked_flights", "monthly_delays", "delay_report"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    expect(page.get_by_text("12 partitions")).to_have_count(3)
    expect(page.get_by_text("Loading")).to_have_count(0)
    page.screenshot(path=screenshots / "assets.png")
