"""A headless Chromium (Debian's) with a page, as the browser tests need it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from scripts.console import ROOT

#: Where screenshots are kept: `docs/pictures` holds copies of them.
SCREENSHOTS = ROOT / ".build" / "screenshots"
#: As root there is no sandbox; the rest keeps Chromium from calling home.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    # A name of somebody else's that leads to this host.
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
]  # fmt: skip
VIEWPORT: ViewportSize = {"width": 1440, "height": 900}
#: Milliseconds that one step of the page may take on a busy machine.
PATIENCE_MS = 60_000


@pytest.fixture(scope="session")
def screenshots() -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS


@pytest.fixture
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: `make test` installs it, or apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Page:
    page = browser.new_page(viewport=VIEWPORT)
    page.set_default_timeout(PATIENCE_MS)
    return page
