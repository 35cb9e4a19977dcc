"""A stand-in for Prometheus: a real HTTP server with the answers of the real one's API, made by the test."""

import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

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


class PrometheusStub:
    """Each question about a range is answered by `series`; values are texts, as in the real answers ("NaN" among
    them), and a wrong question gets status 400 with `"status": "error"`."""

    def __init__(self) -> None:
        self.alerts: list[Json] = []
        #: The labels and points of an expression's series, of a window.
        self.series: Callable[[str, float, float, float], list[tuple[dict[str, str], Points]]] = lambda *_: []
        self.asked: list[dict[str, str]] = []
        self.http_status = 200
        self.raw_body: bytes | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = stub.raw_body
                if body is None:
                    body = json.dumps({"status": "success", "data": stub.answer(self.path)}).encode()
                self.send_response(stub.http_status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: pytest's output is for tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "PrometheusStub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

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
