"""Monitoring in the browser while a run goes on: what each page shows of it, and the pictures for docs/."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, HttpCredentials, Page, expect

from tests.browser.conftest import VIEWPORT
from tests.stack import work
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Steps of the run that have ended before the first look: it is under way, and far from its end.
ENDED = 50
#: So many together last a minute.
RUNS = 2


@pytest.fixture(scope="module")
def run_ids(stack: Stack, monitoring: Monitoring) -> Iterator[list[str]]:
    """Runs of many steps that are under way as the pages are looked at."""
    before = monitoring.figures().sum("dagster_steps_ended_total", outcome="success")
    run_ids = [work.begin_many_steps(stack) for _ in range(RUNS)]
    wait_until(
        lambda: monitoring.figures().sum("dagster_steps_ended_total", outcome="success") - before, 120, "steps that ended",
        until=lambda ended: ended > ENDED,
    )  # fmt: skip
    yield run_ids
    work.end(stack, *run_ids)


def test_the_page_shows_the_figures_of_now_and_charts(
    monitoring: Monitoring, run_ids: list[str], page: Page, screenshots: Path
) -> None:
    page.goto(f"http://127.0.0.1:{monitoring.stack.settings['METRICS_PORT']}/")
    expect(page.locator("svg").first).to_be_visible()
    # The runs are there
    expect(page.get_by_text(re.compile(rf"{work.MANY_STEPS} \d"))).to_be_visible()
    # No text of a chart is cut
    cut = page.evaluate("""[...document.querySelectorAll('figure svg[role=img] text')].filter(each => {
        const box = each.getBoundingClientRect(), room = each.ownerSVGElement.getBoundingClientRect();
        return box.left < room.left - 1 || box.right > room.right + 1;
    }).map(each => each.textContent)""")
    assert cut == []
    # No script, font or picture from elsewhere, and none that is refused
    loaded = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
    assert [address for address in loaded if "127.0.0.1" not in address] == []
    page.screenshot(path=screenshots / "monitoring-page.png", full_page=True)


def test_status_tells_in_the_terminal_what_prometheus_knows(
    stack: Stack, monitoring: Monitoring, run_ids: list[str], page: Page, screenshots: Path
) -> None:
    def look() -> tuple[str, list[str]]:
        return stack.make("status").stdout, monitoring.firing()

    # When somebody asks
    text, firing = wait_until(look, 60, "the same alerts in both", until=lambda seen: agree(*seen))
    page.set_content(
        "<body style='background: #1d2430; color: #e8ecf0; margin: 24px'><pre style='font: 14px monospace; display: inline-block'>"
        f"{html.escape(text)}</pre>"
    )
    page.locator("pre").screenshot(path=screenshots / "status.png")

    # Then the first line answers, and each alert, the queues and the run that is under way are there
    assert text.startswith("All is well: ") != bool(firing), text
    assert all(f"! {name}" in text for name in firing)
    assert re.search(r"^dagster +[\d,]+ .* [12] +[\d,]+ ", text, re.MULTILINE), text
    assert re.search(r"^heavy +0 ", text, re.MULTILINE), text
    assert re.search(r"^RUNS +[12] started", text, re.MULTILINE), text


def agree(text: str, firing: list[str]) -> bool:
    """Whether `make status` and Prometheus speak of the same moment."""
    return sum(line.startswith("! ") for line in text.splitlines()) == len(firing)


def test_flower_shows_the_runs_steps_by_name(
    monitoring: Monitoring, run_ids: list[str], browser: Browser, screenshots: Path
) -> None:
    settings = monitoring.stack.settings
    user, password = monitoring.flower_login
    login: HttpCredentials = {"username": user, "password": password}
    with browser.new_context(http_credentials=login, viewport=VIEWPORT) as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{settings['FLOWER_PORT']}/tasks")
        expect(page.get_by_text(f"{work.MANY_STEPS}: ").first).to_be_visible()
        expect(page.get_by_text(re.compile("|".join(run_ids))).first).to_be_visible()
        page.screenshot(path=screenshots / "flower.png")


def test_prometheus_has_rules_and_draws_the_run(
    monitoring: Monitoring, run_ids: list[str], page: Page, screenshots: Path
) -> None:
    address = f"http://127.0.0.1:{monitoring.stack.settings['PROMETHEUS_PORT']}"
    page.goto(f"{address}/classic/alerts")
    expect(page.get_by_text("Inactive").first).to_be_visible()
    page.screenshot(path=screenshots / "prometheus-alerts.png")
    query = 'sum by (queue, state) (dagster_steps{queue="dagster"})'
    page.goto(f"{address}/classic/graph?g0.expr={quote(query)}&g0.range_input=5m&g0.tab=0")
    expect(page.get_by_text('state="waiting"').first).to_be_visible()
    page.screenshot(path=screenshots / "prometheus-graph.png")
