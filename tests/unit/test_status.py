"""`make status`: what is on the screen, what scripts get, and that one can always leave it."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest
import requests
from prometheus_client.core import Metric
from rich.console import Console

from dagster_stack.client.status import show_status
from dagster_stack.client.status_screen import Screen
from dagster_stack.errors import ExitCode
from dagster_stack.monitoring.snapshot import Alerting, Alerts, Snapshot
from scripts.console import ROOT
from tests.unit.figures_by_hand import Rows, figures
from tests.unit.prometheus_stub import PrometheusStub, alert


def drawn(snapshot: Snapshot, width: int = 80, height: int = 24, fitted: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=height, highlight=False).print(Screen(snapshot, fitted))
    return out.getvalue()


def snapshot(alerts: Alerts | None = None, /, **changed: Rows) -> Snapshot:
    return Snapshot.of(figures(**changed), 1000.0, alerts or Alerts())


def row(text: str, name: str) -> list[str]:
    """The cells of the line that begins with a name."""
    return next(re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith(name))


def test_a_terminal_of_80_by_24_shows_all_of_it() -> None:
    text = drawn(snapshot(), fitted=True)

    assert len(text.splitlines()) <= 24
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.startswith("All is well: 6 runs in progress, 8 steps running, 812 waiting.")
    assert row(text, "dagster") == ["dagster", "812", "43 s", "8", "804", "16", "8", "100 %", "4f2c9a1b"]
    assert row(text, "heavy") == ["heavy", "0", "-", "0", "0", "0", "1", "0 %", "4f2c9a1b"]
    assert row(text, "RUNS") == ["RUNS", "3 queued, 3 started"]
    assert row(text, "RUN QUEUE") == ["RUN QUEUE", "3, the oldest for 1 min 11 s"]
    assert row(text, "DAEMONS") == ["DAEMONS", "scheduler 2.2 s, sensor 4.0 s"]
    assert row(text, "POSTGRES")[1] == "44 of 197 connections"
    assert row(text, "EVENT LOG") == ["EVENT LOG", "1,234,567 rows, 1.8 GB"]
    assert row(text, "BUCKET") == ["BUCKET", "3.1 GB in 9,123 objects"]
    assert row(text, "ALERTS") == ["ALERTS", "`make monitoring` switches them on"]


def test_figures_are_never_cut_on_a_narrow_terminal() -> None:
    text = drawn(
        snapshot(dagster_steps=[({"queue": "a_queue_with_a_long_name", "state": "waiting"}, 123456)]), 72
    )

    assert "123,456" in text
    assert "…" not in text


def test_what_does_not_fit_is_cut_at_the_end_and_counted() -> None:
    whole = drawn(snapshot()).splitlines()

    lines = drawn(snapshot(), height=8, fitted=True).splitlines()

    assert lines[:7] == whole[:7]
    assert lines[7].rstrip() == f"… {len(whole) - 7} more lines: a higher window shows them"


def test_alarms_come_first() -> None:
    alerts = Alerts(Alerting.AWAY, complaint="Prometheus does not answer (X).")
    text = drawn(
        snapshot(alerts, dagster_queue_consumers=[({"queue": "dagster"}, 0)], dagster_worker_processes=[])
    )

    assert text.splitlines()[1].startswith("! No worker on the queue dagster")
    assert row(text, "ALERTS") == ["ALERTS", "Prometheus does not answer (X)."]


def test_what_nobody_measures_is_a_question_mark() -> None:
    text = drawn(Snapshot.of((), 0, Alerts(), away="Postgres"))

    assert text.startswith("Postgres does not answer: `make ps` shows its state")
    assert row(text, "EVENT LOG") == ["EVENT LOG", "? rows, ?"]
    assert not re.search(r"\b0\b", text.partition("UTC")[2])


def test_names_from_outside_cant_steer_the_terminal() -> None:
    text = drawn(snapshot(dagster_steps=[({"queue": "\x1b[31mred[bold]", "state": "running"}, 1)]))

    assert "\x1b" not in text
    assert "red[bold]" in text


# Once, and as JSON.


def away() -> list[Metric]:
    raise requests.ConnectionError("http://user:secret@rabbitmq")


def test_without_a_terminal_it_is_printed_once_without_control_characters() -> None:
    out = io.StringIO()

    assert show_status(out, figures, environment={"TERM": "xterm"}) == ExitCode.SUCCESS
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().startswith("All is well")


def test_json_is_one_document_with_the_alerts() -> None:
    out = io.StringIO()
    with PrometheusStub() as stub:
        stub.alerts = [alert("StepWaits", "A step waits.")]
        code = show_status(
            out,
            figures,
            as_json=True,
            environment={"DAGSTER_STACK_PROMETHEUS_URL": stub.url, "DAGSTER_STACK_PROFILES": "monitoring"},
        )

    document = json.loads(out.getvalue())
    assert code == ExitCode.SUCCESS
    assert document["verdict"] == "unwell"
    assert document["alerts"]["firing"][0]["name"] == "StepWaits"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_store_that_is_away_is_said_with_the_cure(as_json: bool) -> None:
    out = io.StringIO()

    assert show_status(out, away, as_json=as_json, once=True, environment={}) == ExitCode.UNREACHABLE
    assert (
        "RabbitMQ's management does not answer: `make ps` shows its state, `make up` starts it."
        in out.getvalue()
    )
    assert "secret" not in out.getvalue()


def test_a_store_that_hangs_is_away_after_a_while() -> None:
    out, released = io.StringIO(), threading.Event()

    def hang() -> list[Metric]:
        released.wait()
        return []

    try:
        code = show_status(out, hang, as_json=True, environment={}, patience=0.05)
    finally:
        released.set()

    assert code == ExitCode.UNREACHABLE
    assert json.loads(out.getvalue())["headline"].startswith("A store does not answer")


# Live.

#: Each look but the first waits for a line, so that none is missed on a busy machine.
PROGRAM = """
    import sys, threading
    import requests
    from dagster_stack.client import status
    from tests.unit.figures_by_hand import figures

    looks = iter(range(1000))
    def changing():
        look = next(looks)
        if look:
            sys.stdin.readline()
        match look:
            case 0:
                return figures(dagster_run_queue_length=[({}, 111)])
            case 1:
                raise requests.ConnectionError("away")
            case 2:
                return figures(dagster_run_queue_length=[({}, 222)])
            case _:
                threading.Event().wait()

    status.Watcher.__init__.__defaults__ = (0.01,)
    sys.exit(status.show_status(sys.stdout, changing, patience=0.5))
"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_the_screen_goes_on_while_a_store_is_away_and_ctrl_c_leaves_it_as_it_was(
    terminal: tuple[int, int],
) -> None:
    # Given a live display on a terminal
    ours, theirs = terminal
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            seen += os.read(ours, 65536)

    # When a store is away, comes back, and then lets everybody wait
    until(b"\x1b[?1049h")
    for words in (b"111, the oldest", b"management does not answer", b"222, the oldest"):
        until(words)
        os.write(ours, b"\n")
    seen = b""
    until(b"A store does not answer")

    # Then Ctrl-C still ends it, and the terminal's own content is back
    process.send_signal(signal.SIGINT)
    until(b"\x1b[?1049l")
    assert process.wait(30) == 0
    assert b"Traceback" not in seen


SCALED: dict[str, Rows] = {
    "dagster_autoscale_workers": [
        ({"service": "worker", "number": name}, number)
        for name, number in {"running": 3, "wish": 5, "least": 1, "most": 8}.items()
    ],
    "dagster_autoscale_reason": [({"service": "worker", "reason": "memory"}, 1)],
}


def test_where_the_number_of_workers_follows_the_work_it_stands_there_with_the_reason() -> None:
    seen = snapshot(**SCALED)

    assert "AUTOSCALE  3 worker of 1 to 8 (wish 5: memory)" in drawn(seen)
    assert seen.as_json()["autoscale"] == (
        {"service": "worker", "running": 3, "wish": 5, "least": 1, "most": 8, "reason": "memory"},
    )
    assert "AUTOSCALE" not in drawn(snapshot())
