"""`make status`: the stack on one screen, drawn anew every 2 s, or once as text or JSON."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from prometheus_client.core import Metric
from rich.console import Console
from rich.live import Live

from dagster_stack.client.status_screen import Screen
from dagster_stack.client.workers import PLAIN_WIDTH
from dagster_stack.errors import ExitCode
from dagster_stack.monitoring.prometheus import Prometheus
from dagster_stack.monitoring.snapshot import Alerts, Snapshot

#: Seconds between two looks at the stores.
INTERVAL_SECS = 2.0
#: Seconds that one look may take before a store counts as not answering; a refused connection is reported at once.
PATIENCE_SECS = 15.0

Families = Callable[[], list[Metric]]


class Watcher(threading.Thread):
    """Looks at the stores again and again, in a thread: the user must be able to leave while a store hangs."""

    def __init__(self, look: Callable[[], Snapshot], interval: float = INTERVAL_SECS) -> None:
        super().__init__(name="status", daemon=True)
        self._look, self._interval = look, interval
        self._news = threading.Condition()
        self._newest: Snapshot | None = None
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            snapshot = self._look()
            with self._news:
                self._newest = snapshot
                self._news.notify_all()
            self._stopped.wait(self._interval)

    def stop(self) -> None:
        self._stopped.set()

    def next(self, after: Snapshot | None, timeout: float) -> Snapshot | None:
        """The newest snapshot once it is another one than `after`; what there is when the time is over."""
        with self._news:
            self._news.wait_for(lambda: self._newest is not after, timeout)
            return self._newest


def hanging(snapshot: Snapshot | None, now: float) -> Snapshot:
    """What is known while a store does not answer."""
    alerts = snapshot.alerts if snapshot else Alerts()
    return Snapshot.of((), now, alerts, away="A store")


def show_status(
    out: TextIO,
    families: Families,
    *,
    as_json: bool = False,
    once: bool = False,
    environment: Mapping[str, str] = os.environ,
    patience: float = PATIENCE_SECS,
) -> ExitCode:
    """Show it until Ctrl-C on a terminal, once elsewhere; UNREACHABLE when that once a store did not answer."""
    prometheus = Prometheus.from_environment(environment)
    watcher = Watcher(lambda: Snapshot.take(families, prometheus))
    watcher.start()
    try:
        if (
            not (as_json or once)
            and out.isatty()
            and environment.get("TERM", "dumb") not in ("dumb", "unknown")
        ):
            follow(watcher, Console(file=out, highlight=False), patience)
            return ExitCode.SUCCESS
        snapshot = watcher.next(None, patience) or hanging(None, time.time())
    finally:
        watcher.stop()
    if as_json:
        print(json.dumps(snapshot.as_json(), indent=2), file=out)
    else:
        Console(file=out, highlight=False, width=None if out.isatty() else PLAIN_WIDTH).print(
            Screen(snapshot)
        )
    return ExitCode.UNREACHABLE if snapshot.away else ExitCode.SUCCESS


def follow(watcher: Watcher, console: Console, patience: float) -> None:
    """Draw until Ctrl-C; the terminal is then as it was."""
    known: Snapshot | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                newest = watcher.next(known, patience)
                shown = hanging(known, time.time()) if newest is known else newest
                known = newest
                if shown:
                    live.update(Screen(shown, fitted=True), refresh=True)
        except KeyboardInterrupt:
            return
