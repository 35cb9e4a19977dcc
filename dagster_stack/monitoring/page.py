"""The page of the service `metrics`: the figures of now as `make status` has them, and how they went.

It needs no script and loads nothing, so a machine without a registry, and without Grafana, has it too.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from xml.etree.ElementTree import Element

from dagster_stack.errors import PrometheusUnreachable
from dagster_stack.monitoring.charts import chart
from dagster_stack.monitoring.formatting import number, percent, seconds, size
from dagster_stack.monitoring.html import document, element, source_of
from dagster_stack.monitoring.page_style import STYLE
from dagster_stack.monitoring.prometheus import Prometheus
from dagster_stack.monitoring.snapshot import Alerting, Queue, Snapshot, Verdict
from dagster_stack.monitoring.trends import TRENDS, window

#: Hours that the charts may show; the first is what they show unasked.
HOURS = (1, 6, 24)
#: Seconds after which the browser loads the page anew.
REFRESH_SECS = 15
#: Nothing is loaded, sent or framed; the one style sheet is named by its hash.
POLICY = f"default-src 'none'; style-src {source_of(STYLE)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

#: What stands before the headline, so that the verdict is not told by a colour alone.
SIGNS = {Verdict.WELL: "✔", Verdict.UNWELL: "✘", Verdict.UNKNOWN: "?"}


def page(snapshot: Snapshot, prometheus: Prometheus | None, hours: int) -> bytes:
    """The whole page; a Prometheus that is away costs it the charts only."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("title", f"{SIGNS[snapshot.verdict]} Dagster Celery stack"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="refresh", content=REFRESH_SECS),
        element("meta", name="color-scheme", content="light dark"),
        element("style", STYLE),
    )
    body = element(
        "body",
        element("header", element("h1", "Dagster Celery stack"), element("p", f"{datetime.fromtimestamp(snapshot.at, UTC):%Y-%m-%d %H:%M:%S} UTC")),
        element("main", verdict(snapshot), now(snapshot), trends(snapshot, prometheus, hours)),
        element("footer", element("a", "These figures as JSON", href="status.json"), " · ", element("a", "as Prometheus reads them", href="metrics")),
    )  # fmt: skip
    return document(element("html", head, body, lang="en"))


def verdict(snapshot: Snapshot) -> Element:
    """Is all well? And what is not."""
    section = element(
        "section",
        element("h2", f"{SIGNS[snapshot.verdict]} {snapshot.headline}", class_=snapshot.verdict.value),
    )
    alerts = [
        element("li", element("b", alert.name), f" {alert.summary} ", element("small", alert.severity))
        for alert in snapshot.alerts.firing
    ]
    problems = [element("li", problem) for problem in snapshot.problems]
    if problems or alerts:
        section.append(element("ul", *problems, *alerts, class_="alarms"))
    if snapshot.alerts.state is not Alerting.ON:
        section.append(
            element("p", snapshot.alerts.complaint or "Alerts: `make monitoring` switches them on.")
        )
    return section


def now(snapshot: Snapshot) -> Element:
    """The figures of this moment."""
    runs, stores = snapshot.runs, snapshot.stores
    waiting = f", the oldest for {seconds(runs.queue_oldest_seconds)}" if runs.queue_length else ""
    facts = {
        "Runs in progress": listed(runs.by_status),
        "Runs by job": listed(runs.by_job),
        "Run queue": f"{number(runs.queue_length)}{waiting}",
        "Daemons' last signs of life": "?" if snapshot.daemons is None else ", ".join(
            f"{name.lower()} {seconds(age)}" for name, age in snapshot.daemons.items()
        ) or "none",
        "Postgres": f"{number(stores.database_connections)} of {number(stores.database_connections_limit)} connections",
        "Event log": f"{number(stores.event_log_rows)} rows, {size(stores.event_log_bytes)}",
        "Bucket": f"{size(stores.bucket_bytes)} in {number(stores.bucket_objects)} objects",
        "Code": snapshot.code or "?",
        **({"Notes": " ".join(snapshot.notes)} if snapshot.notes else {}),
    }  # fmt: skip
    entries = [element("div", element("dt", name), element("dd", words)) for name, words in facts.items()]
    return element("section", element("h2", "Now"), queues(snapshot), element("dl", *entries))


def queues(snapshot: Snapshot) -> Element | None:
    if not snapshot.queues:
        return None
    titles = ("Queue", "Waiting", "Oldest", "Running", "Ready", "Held", "Workers", "Busy", "Code")
    rows = [
        element(
            "tr",
            element("th", queue.name, scope="row"),
            *(
                element("td", words)
                for words in (
                    number(queue.waiting), queue.oldest, number(queue.running), number(queue.ready),
                    number(queue.in_flight), number(queue.consumers), percent(queue.utilisation), codes(queue),
                )
            ),
            class_="unwell" if queue.problem else None,
        )
        for queue in snapshot.queues
    ]  # fmt: skip
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in titles)))
    caption = element(
        "caption", "Steps that wait and run, messages ready and held by workers, and who takes them"
    )
    # It scrolls by itself on a narrow screen: hence the keyboard must reach it.
    table = element("table", caption, head, element("tbody", *rows))
    return element("div", table, class_="wide", tabindex=0, role="region", aria_label="Queues")


def codes(queue: Queue) -> str:
    """How many workers have which code."""
    if queue.workers is None:
        return "?"
    return ", ".join(f"{code} × {number(count)}" for code, count in queue.workers.items() if count) or "-"


def trends(snapshot: Snapshot, prometheus: Prometheus | None, hours: int) -> Element:
    """The charts, or why there are none."""
    section = element("section", element("h2", f"The last {'hour' if hours == 1 else f'{hours} hours'}"))
    if prometheus is None:
        section.append(element("p", "Charts are drawn from Prometheus: `make monitoring` switches it on."))
        return section
    links = [
        element("a", f"{each} h", href=f"?hours={each}", aria_current="page" if each == hours else None)
        for each in HOURS
    ]
    section.append(element("nav", *spaced(links), aria_label="Hours that the charts show"))
    period = window(hours, snapshot.at)
    figures = element("div", class_="charts")
    try:
        for trend in TRENDS:
            lines = list(trend.ask(prometheus, period))
            figures.append(
                chart(trend.key, trend.title, trend.description, lines, window=period, words=trend.words)
            )
    except PrometheusUnreachable as error:
        # Not asked again for each chart: the page would be as late as they are many.
        section.append(element("p", str(error), class_="unknown"))
        return section
    section.append(figures)
    return section


def spaced(links: Sequence[Element]) -> Iterator[Element | str]:
    for link in links:
        yield link
        yield " "


def listed(figures: dict[str, float] | None) -> str:
    """`started 3, queued 2`; `?` for what nobody measures."""
    if figures is None:
        return "?"
    return ", ".join(f"{name} {number(value)}" for name, value in figures.items() if value) or "none"
