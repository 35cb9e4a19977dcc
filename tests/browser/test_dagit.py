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
    expect(page.get_by_text("No errors")).to_be_visible()
    page.screenshot(path=screenshots / "launchpad.png")

    # When the run is launched
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    run_id = re.search(r"/runs/([0-9a-f-]{36})", page.url)
    assert run_id

    # Then Dagit shows it through to the end, with 50 green steps
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_text(re.compile(rf"Succeeded \({STEPS}\)"))).to_be_visible()
    page.screenshot(path=screenshots / "gantt.png")

    # And a step's stdout is there, from S3
    page.goto(f"{page.url.split('?')[0]}?logType=stdout&logFileKey=&selection=&focusedTime=")
    page.screenshot(path=screenshots / "stdout.png")
