"""Monitoring in the browser while a run goes on: what each page shows of it, and the pictures for docs/."""

import html
from pathlib import Path

import pytest
from playwright.sync_api import Browser, HttpCredentials, Page, expect

from tests.browser.conftest import VIEWPORT
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack

JOB = "parallel_pipeline"


@pytest.fixture(scope="module")
def run_id(stack: Stack, monitoring: Monitoring) -> str:
    """A run that has ended a moment ago."""
    return stack.succeed(JOB)


def test_the_page_shows_the_figures_of_now_and_charts(
    monitoring: Monitoring, run_id: str, page: Page, screenshots: Path
) -> None:
    page.goto(f"http://127.0.0.1:{monitoring.stack.settings['METRICS_PORT']}/")
    expect(page.locator("svg").first).to_be_visible()
    # No script, font or picture from elsewhere, and none that is refused
    loaded = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
    assert [address for address in loaded if "127.0.0.1" not in address] == []
    page.screenshot(path=screenshots / "monitoring-page.png", full_page=True)


def test_flower_shows_the_runs_steps_by_name(
    monitoring: Monitoring, run_id: str, browser: Browser, screenshots: Path
) -> None:
    settings = monitoring.stack.settings
    user, password = monitoring.flower_login
    login: HttpCredentials = {"username": user, "password": password}
    with browser.new_context(http_credentials=login, viewport=VIEWPORT) as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{settings['FLOWER_PORT']}/tasks")
        expect(page.get_by_text(f"{JOB}: ").first).to_be_visible()
        expect(page.get_by_text(run_id).first).to_be_visible()
        page.screenshot(path=screenshots / "flower.png")


def test_prometheus_has_targets_and_rules(
    monitoring: Monitoring, run_id: str, page: Page, screenshots: Path
) -> None:
    address = f"http://127.0.0.1:{monitoring.stack.settings['PROMETHEUS_PORT']}"
    page.goto(f"{address}/classic/alerts")
    expect(page.get_by_text("Inactive").first).to_be_visible()
    page.screenshot(path=screenshots / "prometheus-alerts.png")


def test_status_tells_in_the_terminal_that_all_is_well(
    stack: Stack, monitoring: Monitoring, run_id: str, page: Page, screenshots: Path
) -> None:
    # When somebody asks
    text = stack.make("status").stdout
    page.set_content(
        "<body style='background: #1d2430; color: #e8ecf0; margin: 24px'><pre style='font: 14px monospace'>"
        f"{html.escape(text)}</pre>"
    )
    page.locator("pre").screenshot(path=screenshots / "status.png")
    # Then the first line says so, and workers and queues are there
    assert text.startswith("All is well")
    assert "dagster" in text
    assert "heavy" in text
