"""The page of the service `metrics`: the figures of now as `make status` has them, and how they went.

It needs no script and loads nothing, so a machine without a registry, and without Grafana, has it too.
"""

import hashlib
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dagster_stack.errors import PrometheusUnreachable
from dagster_stack.monitoring import formatting
from dagster_stack.monitoring.charts import Chart
from dagster_stack.monitoring.prometheus import Prometheus
from dagster_stack.monitoring.snapshot import Snapshot, Verdict
from dagster_stack.monitoring.trends import TRENDS, window

#: Hours that the charts may show; the first is what they show unasked.
HOURS = (1, 6, 24)
#: Seconds after which the browser loads the page anew.
REFRESH_SECS = 15
#: What stands before the headline, so that the verdict is not told by a colour alone.
SIGNS = {Verdict.WELL: "✔", Verdict.UNWELL: "✘", Verdict.UNKNOWN: "?"}

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
#: Nothing is loaded, sent or framed; the one style sheet is named by its hash.
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def listed(figures: dict[str, float] | None, form: str = "{name} {value}", nothing: str = "none") -> str:
    """`started 3, queued 2`; `?` for what nobody measures."""
    if figures is None:
        return "?"
    counts = {name: formatting.number(value) for name, value in figures.items() if value}
    return ", ".join(form.format(name=name, value=value) for name, value in counts.items()) or nothing


#: What is put in as text stays text, whoever wrote it.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
TEMPLATES.filters |= {
    each.__name__: each
    for each in (listed, formatting.number, formatting.percent, formatting.seconds, formatting.size)
}


def page(snapshot: Snapshot, prometheus: Prometheus | None, hours: int) -> bytes:
    """The whole page; a Prometheus that is away costs it the charts only."""
    charts: list[Chart] | None = None
    complaint = ""
    period = window(hours, snapshot.at)
    try:
        # One that does not answer is not asked again for each chart: the page would be as late as they are many.
        charts = [trend.chart(prometheus, period) for trend in TRENDS] if prometheus else None
    except PrometheusUnreachable as error:
        complaint = str(error)
    text = TEMPLATES.get_template("page.html").render(
        snapshot=snapshot,
        sign=SIGNS[snapshot.verdict],
        at=datetime.fromtimestamp(snapshot.at, UTC),
        style=STYLE,
        refresh_secs=REFRESH_SECS,
        hours=hours,
        all_hours=HOURS,
        charts=charts,
        complaint=complaint,
    )
    return text.encode()
