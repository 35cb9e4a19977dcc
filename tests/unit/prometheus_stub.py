"""A stand-in for Prometheus: a real HTTP server with the answers of the real one's API, made by the test."""

import json
import math
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.unit.http_stub import HttpStub

Json = dict[str, Any]
Points = list[tuple[float, float]]


def alert(
    name: str, summary: str = "", severity: str = "warning", state: str = "firing", **labels: str
) -> Json:
    """As /api/v1/alerts gives it."""
    return {
        "labels": {"alertname": name, "severity": severity, **labels},
        "annotations": {"summary": summary} if summary else {},
        "state": state,
        "activeAt": "2026-11-23T07:00:00Z",
        "value": "1e+00",
    }


class PrometheusStub(HttpStub):
    """Each question about a range is answered by `series`; values are texts, as in the real answers ("NaN" among
    them), and a wrong question gets status 400 with `"status": "error"`."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[Json] = []
        #: The labels and points of an expression's series, of a window.
        self.series: Callable[[str, float, float, float], list[tuple[dict[str, str], Points]]] = lambda *_: []
        self.asked: list[dict[str, str]] = []

    def body(self, path: str, content: bytes) -> bytes:
        return json.dumps({"status": "success", "data": self.answer(path)}).encode()

    def answer(self, path: str) -> Json:
        address = urlsplit(path)
        if address.path == "/api/v1/alerts":
            return {"alerts": self.alerts}
        assert address.path == "/api/v1/query_range", path
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.asked.append(asked)
        found = self.series(asked["query"], float(asked["start"]), float(asked["end"]), float(asked["step"]))
        return {
            "resultType": "matrix",
            "result": [
                {
                    "metric": labels,
                    "values": [[at, "NaN" if math.isnan(value) else str(value)] for at, value in points],
                }
                for labels, points in found
            ],
        }
