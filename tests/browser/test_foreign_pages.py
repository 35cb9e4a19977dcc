"""Pages of other sites in a real browser, against Dagit: no run is launched, nothing is shown, and its own page works."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, Response, expect

from tests.browser.foreign_site import ATTACK, foreign_site
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: A name of somebody else's that leads to this host, as conftest.py tells the browser.
REBOUND = "evil.example"
#: Tells the runs of this session from those of an earlier one.
SESSION = uuid.uuid4().hex
#: Answers that an attack is seen to get at least; 17 to 20, as the browser tells of preflights and of frames.
ANSWERED = 12
RUNS = "query Runs($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) { ... on Runs { count } } }"
ASK = """
([query]) => fetch("/graphql", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({query})})
  .then(async answer => [answer.status, await answer.text()])
"""


def launch(by: str) -> str:
    """A mutation that launches one step of a job; the run is told by its tag."""
    selector = '{repositoryLocationName: "pipelines", repositoryName: "__repository__", jobName: "parallel_pipeline", solidSelection: ["not_much_0"]}'
    metadata = f'{{tags: [{{key: "launched-by", value: "{by} {SESSION}"}}]}}'
    params = f"{{selector: {selector}, runConfigData: {{}}, executionMetadata: {metadata}}}"
    return f"mutation {{ launchRun(executionParams: {params}) {{ __typename ... on LaunchRunSuccess {{ run {{ runId }} }} }} }}"


def launched(stack: Stack, by: str) -> int:
    found: dict[str, Any] = stack.graphql(RUNS, tags=[{"key": "launched-by", "value": f"{by} {SESSION}"}])[
        "runsOrError"
    ]
    return int(found["count"])


class Answers:
    """What a server answered to a page and its frames, also where the page must not know: request and status."""

    def __init__(self, page: Page, url: str) -> None:
        self.found: list[tuple[str, int]] = []
        self._url = url
        self._asked: dict[str, str] = {}
        session = page.context.new_cdp_session(page)
        session.on("Network.requestWillBeSent", self._ask)
        session.on("Network.responseReceivedExtraInfo", self._answer)
        session.send("Network.enable")
        # Frames of another site are processes of their own to the browser.
        page.on("response", self._frame)

    def _ask(self, event: dict[str, Any]) -> None:
        request = event["request"]
        if request["url"].startswith(self._url):
            self._asked[event["requestId"]] = f"{request['method']} {request['url']}"

    def _answer(self, event: dict[str, Any]) -> None:
        if asked := self._asked.get(event["requestId"]):
            self.found.append((asked, event["statusCode"]))

    def _frame(self, answer: Response) -> None:
        if answer.url.startswith(self._url):
            self.found.append((f"{answer.request.method} {answer.url}", answer.status))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with foreign_site() as port:
        yield port


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", REBOUND])
def test_a_page_of_another_site_or_port_launches_nothing(
    stack: Stack, page: Page, port: int, host: str, screenshots: Path
) -> None:
    # Given a page of another site, or of another port of this host
    page.goto(f"http://{host}:{port}/")
    answers = Answers(page, stack.dagit_url)
    # When it tries all that pages can send
    ended = page.evaluate(ATTACK, [stack.dagit_url, launch(host)])
    page.screenshot(path=screenshots / f"foreign-{host}.png")
    # Then Dagit refused whatever came to it
    assert ended["graphql-ws"] == ended["graphql-transport-ws"] == ended["POST json"] == "error", ended
    wait_until(lambda: len(answers.found), 30, "as many answers", until=lambda number: number >= ANSWERED)
    assert {status for _, status in answers.found} == {403}, answers.found
    # And not in a tab of its own, either
    answer = page.goto(
        f"{stack.dagit_url}/graphql?query={quote(launch(host))}", referer=f"http://{host}:{port}/"
    )
    assert answer
    assert answer.status == 403
    assert launched(stack, host) == 0


def test_a_foreign_name_that_leads_here_is_no_way_in(stack: Stack, page: Page, screenshots: Path) -> None:
    # Given a page whose name an attacker's DNS server now gives this host's address: the browser takes all that is
    # here for the page's own
    address = stack.dagit_url.replace("127.0.0.1", REBOUND)
    answer = page.goto(address)
    # Then it is told what to do if that was meant
    assert answer
    assert answer.status == 403
    expect(page.get_by_text("PUBLIC_HOST")).to_be_visible()
    page.screenshot(path=screenshots / "foreign-host.png")
    # And neither a change nor a question is answered, nor a socket opened
    for query in (launch("rebound"), "{ version }"):
        status, text = page.evaluate(ASK, [query])
        assert (status, "PUBLIC_HOST" in text) == (403, True)
    socket = """address => new Promise(resolve => {
        const made = new WebSocket(address, "graphql-ws"); made.onopen = () => resolve("open");
        made.onerror = () => resolve("error"); })"""
    assert page.evaluate(socket, f"{address.replace('http', 'ws')}/graphql") == "error"
    assert launched(stack, "rebound") == 0


def test_dagits_own_page_launches_and_hears_by_its_socket(stack: Stack, page: Page, port: int) -> None:
    # Given Dagit, opened by a link of another site
    heard: list[str | bytes] = []
    problems: list[str] = []

    def hear(frame: str | bytes) -> None:
        heard.append(frame)

    page.on("websocket", lambda opened: opened.on("framereceived", hear))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"http://localhost:{port}/")
    page.evaluate("address => { location.href = address }", f"{stack.dagit_url}/runs")
    page.wait_for_url(f"{stack.dagit_url}/runs**")
    expect(page.get_by_text("Runs").first).to_be_visible()
    # When its page launches a run
    status, text = page.evaluate(ASK, [launch("its page")])
    answer = json.loads(text)["data"]["launchRun"]
    # Then it is
    assert (status, answer["__typename"]) == (200, "LaunchRunSuccess")
    assert launched(stack, "its page") == 1
    # And the page shows it to its end, over its socket, and had nothing to complain of
    page.goto(f"{stack.dagit_url}/runs/{answer['run']['runId']}")
    expect(page.get_by_text("RUN_SUCCESS").first).to_be_visible()
    assert any("pipelineRunLogs" in str(frame) or "RunSuccessEvent" in str(frame) for frame in heard)
    assert problems == []
