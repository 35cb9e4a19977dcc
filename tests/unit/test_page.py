"""The page of the service `metrics`, as a browser gets it."""

import hashlib
import json
import math
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
import requests
from prometheus_client.core import Metric

from dagster_stack.monitoring.charts import LINES, Chart, Line, Window, ceiling
from dagster_stack.monitoring.exporter import Exporter, is_own_name
from dagster_stack.monitoring.metrics import Figures
from dagster_stack.monitoring.page import STYLE, TEMPLATES
from dagster_stack.monitoring.prometheus import Prometheus
from dagster_stack.monitoring.trends import TRENDS, amount, window
from tests.unit.figures_by_hand import figures
from tests.unit.prometheus_stub import Points, PrometheusStub, alert


class FiguresByHand(Figures):
    """What the stores would say, or the error that they raise."""

    def __init__(self) -> None:
        self.answer: Callable[[], list[Metric]] = figures

    def collect(self) -> list[Metric]:
        return self.answer()


class Page:
    """The service on this machine, asked as a browser does."""

    def __init__(self, exporter: Exporter, by_hand: FiguresByHand) -> None:
        self.url = f"http://127.0.0.1:{exporter.server_address[1]}"
        self.by_hand = by_hand
        self.exporter = exporter

    def get(self, path: str = "/", **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=10)


@pytest.fixture
def stub() -> Iterator[PrometheusStub]:
    with PrometheusStub() as stub:
        stub.series = lambda query, start, end, step: [({"queue": "heavy"}, [(start, 1.0), (end, 3.0)])]
        yield stub


@pytest.fixture
def page(stub: PrometheusStub) -> Iterator[Page]:
    by_hand = FiguresByHand()
    exporter = Exporter(by_hand, ("127.0.0.1", 0), Prometheus(stub.url))
    thread = threading.Thread(target=exporter.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Page(exporter, by_hand)
    exporter.shutdown()
    thread.join()
    exporter.server_close()


class Reader(HTMLParser):
    """What stands in a page: its elements with their attributes, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def test_the_page_says_whether_all_is_well_and_shows_the_figures_of_now(page: Page) -> None:
    answer = page.get()

    assert answer.status_code == 200
    for words in (
        "✔ All is well: 6 runs in progress, 8 steps running, 812 waiting.", "812", "started 3", "44 of 197 connections",
        "1,234,567 rows, 1.8 GB", "4f2c9a1be0d7",
    ):  # fmt: skip
        assert words in answer.text


def test_a_chart_for_each_trend_has_a_name_and_a_summary_for_those_who_cant_see_it(page: Page) -> None:
    reader = Reader(page.get().text)
    drawings = [each for each in reader.all("svg") if each.get("role") == "img"]
    ids = {each.get("id") for _, each in reader.elements}

    assert len(drawings) == len(TRENDS) == 12
    assert all(set((each["aria-labelledby"] or "").split()) <= ids for each in drawings)
    assert any("heavy: 3 at the end, at most 3" in text for text in reader.texts)


def test_nothing_is_loaded_run_or_kept(page: Page) -> None:
    answer = page.get()
    reader = Reader(answer.text)

    # The browser is told so
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    digest = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    # And there is nothing that it would have to refuse
    assert f"<style>{STYLE}</style>" in answer.text
    assert not reader.all("script")
    assert not reader.all("link")
    assert not any(
        {"src", "style"} & set(attributes) or any(name.startswith("on") for name in attributes)
        for _, attributes in reader.elements
    )
    assert {each["href"] for each in reader.all("a")} == {
        "?hours=1",
        "?hours=6",
        "?hours=24",
        "status.json",
        "metrics",
    }


@pytest.mark.parametrize(
    ("query", "hours"),
    [
        ("", 1),
        ("?hours=1", 1),
        ("?hours=6", 6),
        ("?hours=24", 24),
        ("?hours=99999", 1),
        ("?hours=x", 1),
        ("?hours=", 1),
    ],
)
def test_the_hours_that_are_asked_for_are_shown(
    page: Page, stub: PrometheusStub, query: str, hours: int
) -> None:
    reader = Reader(page.get(f"/{query}").text)

    spans = {round(float(asked["end"]) - float(asked["start"])) for asked in stub.asked}
    assert spans == {hours * 3600}
    assert [each["href"] for each in reader.all("a") if each.get("aria-current")] == [f"?hours={hours}"]


def test_a_rate_looks_back_a_step_at_least(page: Page, stub: PrometheusStub) -> None:
    page.get("/?hours=24")
    page.get("/?hours=1")

    rates = [asked["query"] for asked in stub.asked if "rate(" in asked["query"]]
    assert {re.findall(r"\[(\w+)\]", query)[0] for query in rates} == {"720s", "120s"}
    assert not any("RANGE" in asked["query"] for asked in stub.asked)


EVIL = "<script>alert(1)</script>\"'&"


def test_what_others_named_stays_text(page: Page, stub: PrometheusStub) -> None:
    # Given names that are markup wherever a name may come from
    page.by_hand.answer = lambda: figures(
        dagster_steps=[({"queue": EVIL, "state": "waiting"}, 1)],
        dagster_runs=[({"job": EVIL, "status": EVIL}, 1)],
        dagster_daemon_heartbeat_age_seconds=[({"daemon": EVIL}, 1000)],
        dagster_workers=[({"queue": EVIL, "code": EVIL}, 1)],
        dagster_code=[({"code": EVIL}, 1)],
    )
    stub.alerts = [alert(EVIL, EVIL, EVIL)]
    names = ("queue", "state", "status", "outcome", "prefix")
    stub.series = lambda _, start, end, step: [(dict.fromkeys(names, EVIL), [(start, 1.0), (end, 1.0)])]

    # When the page is read
    reader = Reader(page.get().text)

    # Then there is no element of them, and they are told as they are
    assert not reader.all("script")
    assert any(EVIL in text for text in reader.texts)


def test_alerts_and_problems_are_listed(page: Page, stub: PrometheusStub) -> None:
    stub.alerts = [alert("StepWaits", "A step waits.")]
    page.by_hand.answer = lambda: figures(
        dagster_queue_consumers=[({"queue": "dagster"}, 0)], dagster_worker_processes=[]
    )

    text = page.get().text

    assert "✘ 2 things to look at." in text
    assert "No worker on the queue dagster" in text
    assert "<b>StepWaits</b> A step waits. <small>warning</small>" in text


@pytest.mark.parametrize("breakage", ["away", "nonsense"])
def test_without_prometheus_the_figures_of_now_stand_alone(
    page: Page, stub: PrometheusStub, breakage: str
) -> None:
    if breakage == "away":
        page.exporter.prometheus = Prometheus("http://127.0.0.1:1")
    else:
        stub.raw_body = b"<html>"

    answer = page.get()

    assert answer.status_code == 200
    assert "Prometheus does not answer" in answer.text
    assert "44 of 197 connections" in answer.text
    assert not [each for each in Reader(answer.text).all("svg") if each.get("role") == "img"]


def test_a_prometheus_that_fails_is_asked_once_for_charts(page: Page, stub: PrometheusStub) -> None:
    def refuse(*_: Any) -> Any:
        stub.http_status = 503
        return []

    stub.series = refuse
    page.get()

    assert len(stub.asked) == 1


def test_while_the_profile_is_off_the_page_says_how_it_is_switched_on(page: Page) -> None:
    page.exporter.prometheus = None

    text = page.get().text

    assert "Alerts: `make monitoring` switches them on." in text
    assert "Charts are drawn from Prometheus: `make monitoring` switches it on." in text


def test_a_store_that_is_away_is_said_by_page_and_json_without_its_address(page: Page) -> None:
    def away() -> list[Metric]:
        raise requests.ConnectionError("http://user:secret@rabbitmq")

    page.by_hand.answer = away

    for path in ("/", "/status.json"):
        answer = page.get(path)
        assert answer.status_code == 503
        assert "RabbitMQ's management does not answer" in unescape(answer.text)
        assert "secret" not in answer.text
    # And the next one is well
    page.by_hand.answer = figures
    assert page.get("/status.json").status_code == 200


def test_the_json_is_that_of_make_status(page: Page) -> None:
    answer = page.get("/status.json")

    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.text)["queues"][0]["waiting"] == 812


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:9808", True), ("localhost:9808", True), ("[::1]:9808", True), ("metrics:9808", True), ("10.0.0.7", True),
        ("evil.example.com", False), ("evil.example.com:9808", False), ("127.0.0.1.evil.example.com", False), ("", False),
    ],
)  # fmt: skip
def test_names_of_the_internet_are_not_this_services_own(host: str, own: bool) -> None:
    assert is_own_name(host) is own


def test_a_page_that_resolves_its_name_to_this_host_reads_nothing(page: Page) -> None:
    for path in ("/", "/status.json", "/metrics"):
        answer = page.get(path, Host="evil.example.com")
        assert answer.status_code == 421
        assert "812" not in answer.text


# Drawings.

HOUR = Window(0, 3600, 30)


def drawn(*lines: Line) -> Any:
    chart = Chart("key", "Title", "Words", amount, lines, HOUR)
    return fromstring(TEMPLATES.get_template("chart.html").render(chart=chart))


def line(name: str, points: Points) -> Line:
    return Line(name, points)


def paths(figure: Any) -> list[str]:
    return [path.get("d") for path in figure.iter("path")]


def test_a_line_is_broken_where_figures_are_missing() -> None:
    points = [(0.0, 1.0), (30.0, 1.0), (60.0, math.nan), (90.0, 1.0), (120.0, 1.0)]

    assert paths(drawn(line("a", points)))[0].count("M") == 2


def test_a_line_runs_from_the_first_moment_to_the_last_between_0_and_the_top() -> None:
    figure = drawn(line("a", [(0.0, 0.0), (3600.0, 40.0)]))

    # Left at the bottom, right at the top; the two points are far from each other, so each is a dot
    assert paths(figure) == ["M66.0 138.0h0M344.0 10.0h0"]
    assert [text.text for text in figure.iter("text")] == [
        "0",
        "20",
        "40",
        "−60 min",
        "−45 min",
        "−30 min",
        "−15 min",
        "now",
    ]


def test_of_too_many_lines_the_highest_are_drawn_and_the_rest_is_counted() -> None:
    figure = drawn(*(line(f"q{number}", [(0.0, float(number))]) for number in range(12)))

    assert len(paths(figure)) == 8
    assert "and 4 more" in "".join(figure.itertext())
    assert "q3:" not in "".join(figure.itertext())


@pytest.mark.parametrize("lines", [[], [Line("a", [])], [Line("a", [(0.0, math.nan), (30.0, math.inf)])]])
def test_without_figures_there_is_no_drawing(lines: list[Line]) -> None:
    figure = drawn(*lines)

    assert "No figures in this time." in "".join(figure.itertext())
    assert not list(figure.iter("svg"))


@pytest.mark.parametrize("value", [1e-6, 0.07, 0.5, 1, 1.01, 3, 8, 9.99, 10, 12, 197, 1.83e9])
def test_a_scale_ends_at_a_round_number_not_far_above_its_figures(value: float) -> None:
    assert value <= ceiling(value) * (1 + 1e-9)
    assert ceiling(value) <= 2.1 * value
    assert f"{ceiling(value):.6e}".partition("e")[0] in {f"{digit}.000000" for digit in (1, 2, 4, 6, 8)}


def test_nothing_happening_is_a_line_at_the_bottom() -> None:
    assert ceiling(0) == 1
    assert paths(drawn(line("a", [(0.0, 0.0), (30.0, 0.0)])))[0] == "M66.0 138.0h0L68.3 138.0"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.25, "0.25"), (40, "40"), (999, "999"), (1234, "1.23 k"), (2e6, "2 M"), (5e12, "5e+03 G")],
)
def test_amounts_in_words(value: float, words: str) -> None:
    assert amount(value) == words


def test_every_query_is_balanced_and_no_two_charts_have_one_key() -> None:
    assert len({trend.key for trend in TRENDS}) == len(TRENDS)
    for query in (query for trend in TRENDS for query in trend.queries.values()):
        assert query.count("(") == query.count(")")
    assert window(6, 100_000).step == 180


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_lines_stand_out_from_what_is_behind_them(theme: str) -> None:
    found = re.findall(r"--(\w+): (#\w{6});", STYLE.partition("body")[0])
    count = len(found) // 2
    colours = dict(found[:count] if theme == "light" else found[count:])

    for behind in (colours["back"], colours["card"]):
        for name in ("text", "muted", "well", "unwell", "unknown", "link"):
            assert contrast(colours[name], behind) >= 4.5, name
        for number in range(LINES):
            assert contrast(colours[f"s{number}"], behind) >= 3, number
