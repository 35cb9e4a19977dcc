"""Grafana's dashboards as their files are: the queries that a browser would send to Prometheus."""

import json
from dataclasses import dataclass
from typing import Any

from scripts.console import ROOT

FOLDER = ROOT / "docker" / "grafana" / "dashboards"
#: What Grafana puts in place of its variables: for a scrape every 15 s, and with all values chosen.
VARIABLES = {"$__rate_interval": "1m", "$queue": ".*", "$job": ".*"}


@dataclass(frozen=True)
class Query:
    """One line's or figure's query, and where it stands."""

    dashboard: str
    panel: str
    expression: str


def dashboards() -> dict[str, dict[str, Any]]:
    """The files' content by their names."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Without the rows, which are headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """All of them, with Grafana's variables replaced. Each must return data while the stack is at work."""
    found = []
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expression = target["expr"]
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                found.append(Query(name, panel["title"], expression))
    return found
