"""What the page asks Prometheus: one entry a chart, in the order in which they stand there."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

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


def quantiles(histogram: str) -> dict[str, str]:
    """Median and 95th percentile over all labels; nothing while nothing happens."""
    query = f"histogram_quantile({{}}, sum by (le) (rate({histogram}_bucket[RANGE])))"
    return {"median": query.format(0.5), "95 %": query.format(0.95)}


def amount(value: float) -> str:
    """`0.5`, `40`, `1.2 k`, `3 M`."""
    power = next((power for power in UNITS if value < 999.5 * 10**power), max(UNITS))
    return f"{value / 10**power:.3g}{UNITS[power]}"


TRENDS = (
    Trend(
        "runs", "Runs in progress", "By status.", amount,
        # A status without a run has no series of its own.
        {"{status}": "sum by (status) (dagster_runs) or 0 * sum by (status) (dagster_run_state_oldest_seconds)"},
    ),
    Trend("queue", "Run queue", "Runs that wait in it.", amount, {"waiting": "sum(dagster_run_queue_length)"}),
    Trend(
        "launch", "Launch to start", "From a run's entry into the run queue to its start.", formatting.seconds,
        quantiles("dagster_run_launch_to_start_seconds"),
    ),
    Trend(
        "ended", "Steps ended", "Attempts a second, by outcome.", amount,
        {"{outcome}": "sum by (outcome) (rate(dagster_steps_ended_total[RANGE]))"},
    ),
    Trend(
        "wait", "Step wait", "From the sending of a step to its start.", formatting.seconds,
        quantiles("dagster_step_wait_seconds"),
    ),
    Trend(
        "steps", "Steps", "Of runs in progress, by queue.", amount,
        {"{queue} {state}": "sum by (queue, state) (dagster_steps)"},
    ),
    Trend(
        "messages", "Messages", "Ready ones wait, workers hold those in flight.", amount,
        {"{queue} {state}": "sum by (queue, state) (dagster_queue_messages)"},
    ),
    Trend("workers", "Workers", "By queue.", amount, {"{queue}": "sum by (queue) (dagster_workers)"}),
    Trend(
        "busy", "Utilisation", "Busy worker processes of all, by queue.", formatting.percent,
        {"{queue}": "max by (queue) (dagster_queue_utilisation)"},
    ),
    Trend(
        "connections", "Database connections", "In use, and what Postgres has to give.", amount,
        {"in use": "sum(dagster_database_connections)", "limit": "max(dagster_database_connections_limit)"},
    ),
    Trend("log", "Event log", "With its indexes.", formatting.size, {"event log": "max(dagster_event_log_bytes)"}),
    Trend("bucket", "Bucket", "By prefix.", formatting.size, {"{prefix}": "sum by (prefix) (dagster_bucket_bytes)"}),
)  # fmt: skip
