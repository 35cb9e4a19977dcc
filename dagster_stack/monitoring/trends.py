"""What the page asks Prometheus for its charts."""

import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dagster_stack.monitoring import formatting
from dagster_stack.monitoring.charts import Chart, Line, Window, Words
from dagster_stack.monitoring.prometheus import Prometheus

#: Points of a line: one for each three units of its width.
POINTS = 120
#: Seconds that a rate looks back at least: some scrapes.
RATE_SECS = 120
#: By the power of ten.
UNITS = {0: "", 3: " k", 6: " M", 9: " G"}


@dataclass(frozen=True)
class Trend:
    """A chart's text, how its figures read, and its queries: name by PromQL. A name may hold labels (`{queue}`);
    RANGE in a query is what a rate looks back."""

    key: str
    title: str
    description: str
    words: Words
    queries: dict[str, str]

    def chart(self, prometheus: Prometheus, window: Window) -> Chart:
        """It as it is now. Raises PrometheusUnreachable."""
        lines = list(self._lines(prometheus, window))
        return Chart(self.key, self.title, self.description, self.words, lines, window)

    def _lines(self, prometheus: Prometheus, window: Window) -> Iterator[Line]:
        back = f"{max(RATE_SECS, math.ceil(window.step))}s"
        for name, query in self.queries.items():
            for series in prometheus.between(
                query.replace("RANGE", back), window.start, window.end, window.step
            ):
                labels = defaultdict(lambda: "?", series.labels)
                yield Line(name.format_map(labels), series.points)


def window(hours: int, now: float) -> Window:
    """The last hours."""
    return Window(now - hours * 3600, now, hours * 3600 / POINTS)


def amount(value: float) -> str:
    """`0.5`, `40`, `1.2 k`, `3 M`."""
    power = next((power for power in UNITS if value < 999.5 * 10**power), max(UNITS))
    return f"{value / 10**power:.3g}{UNITS[power]}"


WORDS = {each.__name__: each for each in (amount, formatting.percent, formatting.seconds, formatting.size)}
#: They stand in a file beside this one, in the order of the page.
TRENDS = tuple(
    Trend(**{**entry, "words": WORDS[entry["words"]]})
    for entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["trend"]
)
