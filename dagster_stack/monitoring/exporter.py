"""The service `metrics`: answers Prometheus with what the stores say now, and with an error when one does not."""

import ipaddress
import json
import logging
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from dagster_stack.monitoring.metrics import Figures
from dagster_stack.monitoring.page import HOURS, POLICY, page
from dagster_stack.monitoring.prometheus import Prometheus
from dagster_stack.monitoring.snapshot import Snapshot

logger = logging.getLogger(__name__)

#: Where Prometheus asks, inside the network of the stack.
PORT = 9808


class Handler(BaseHTTPRequestHandler):
    """`/metrics` for Prometheus, `/` for people, `/status.json` for scripts."""

    server: "Exporter"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if not is_own_name(self.headers.get("Host", "")):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"Ask for 127.0.0.1 or localhost.\n")
        elif route := self.ROUTES.get(path):
            route(self, query)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"There are /, /status.json and /metrics.\n")

    def _health(self, _: str) -> None:
        # Of this process alone: another one would find no store either that this one does not.
        self._answer(HTTPStatus.OK, b"alive\n")

    def _metrics(self, _: str) -> None:
        try:
            text = generate_latest(self.server.figures)
        except Exception as error:
            logger.warning("a scrape failed: %s", error, extra={"action": "scrape.failed"})
            # What the error says may name hosts and users: it is for the log.
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"A store does not answer; the log says which.\n")
        else:
            self._answer(HTTPStatus.OK, text, CONTENT_TYPE_LATEST)

    def _page(self, query: str) -> None:
        asked = parse_qs(query).get("hours", [""])[0]
        hours = int(asked) if asked in map(str, HOURS) else HOURS[0]
        snapshot = self._snapshot()
        html = page(snapshot, self.server.prometheus, hours)
        self._answer(status_of(snapshot), html, "text/html; charset=utf-8", POLICY)

    def _status(self, _: str) -> None:
        snapshot = self._snapshot()
        self._answer(status_of(snapshot), json.dumps(snapshot.as_json()).encode(), "application/json")

    #: One entry an address.
    ROUTES: ClassVar[dict[str, Callable[["Handler", str], None]]] = {
        "/": _page,
        "/status.json": _status,
        "/metrics": _metrics,
        "/health": _health,
    }

    def _snapshot(self) -> Snapshot:
        def families() -> list[Metric]:
            try:
                return self.server.figures.collect()
            except Exception as error:
                logger.warning("a look at the stores failed: %s", error, extra={"action": "look.failed"})
                raise

        return Snapshot.take(families, self.server.prometheus)

    def _answer(
        self,
        status: HTTPStatus,
        body: bytes,
        kind: str = "text/plain; charset=utf-8",
        policy: str = "default-src 'none'; frame-ancestors 'none'",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        logger.debug(format, *arguments, extra={"action": "http.request"})


def is_own_name(host: str) -> bool:
    """Whether a request's Host is an address, or a name without a dot as in the stack's network. A page of the
    internet that resolves its own name to this host (DNS rebinding) always has one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(name) and "." not in name
    return True


def status_of(snapshot: Snapshot) -> HTTPStatus:
    """The figures are there, or a store is away."""
    return HTTPStatus.SERVICE_UNAVAILABLE if snapshot.away else HTTPStatus.OK


class Exporter(ThreadingHTTPServer):
    """Serves the figures over HTTP; the page's charts come from Prometheus, where there is one."""

    daemon_threads = True

    def __init__(
        self,
        figures: Figures,
        address: tuple[str, int] = ("0.0.0.0", PORT),
        prometheus: Prometheus | None = None,
    ) -> None:
        self.figures, self.prometheus = figures, prometheus
        super().__init__(address, Handler)
        logger.info("figures on port %d", self.server_port, extra={"action": "exporter.started"})

    def handle_error(self, request: object, client_address: object) -> None:
        """What goes wrong with one request, such as a client that does not wait for its answer, is one event."""
        logger.info("a request ended early: %s", sys.exception(), extra={"action": "http.ended_early"})
