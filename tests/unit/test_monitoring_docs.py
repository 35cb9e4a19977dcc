"""What docs/monitoring.md says of the figures is what there is."""

import re

import pytest

from dagster_stack.messaging.management import QueueDepth
from dagster_stack.messaging.workers import Worker
from dagster_stack.monitoring import queues
from dagster_stack.monitoring.bucket import Bucket
from dagster_stack.monitoring.metrics import Figures
from dagster_stack.monitoring.workers import Workers
from dagster_stack.store.connections import pooled_engine
from scripts.console import ROOT

TYPES = {"counter": "_total"}


def test_every_figure_is_explained_and_no_other_one(database_url: str) -> None:
    # Given all figures of all sources
    workers, bucket = Workers(), Bucket()
    workers.update([Worker.of("a@1", {"code": "abc", "queues": ["dagster"], "processes": 1, "host": "box2"})])
    bucket.update({"storage": (1, 1)})
    depths = [QueueDepth("dagster", 1, 1, 1)]
    sources = [
        workers.figures,
        bucket.figures,
        lambda: queues.figures(depths),
        lambda: queues.alarms({"disk": False}),
    ]
    there = {
        f"{metric.name}{TYPES.get(metric.type, '')}"
        for metric in Figures(pooled_engine(database_url, 1), None, sources).collect()
    }
    # Then the page's table has them, each
    page = (ROOT / "docs" / "monitoring.md").read_text()
    explained = {name for line in page.splitlines() if line.startswith("| `dagster_") for name in names(line)}
    assert explained == there


def names(line: str) -> list[str]:
    return re.findall(r"`(dagster_\w+)`", line.split("|")[1])


@pytest.mark.parametrize("line", ["| `dagster_a`, `dagster_b_total` | x | `dagster_c` |"])
def test_names_are_those_of_the_first_column(line: str) -> None:
    assert names(line) == ["dagster_a", "dagster_b_total"]
