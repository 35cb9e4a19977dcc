"""The embedded mode's own part: its settings, its port, its end."""

import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dagster_stack.services.health import LIFELESS_STATES, process_state
from scripts import dev
from scripts.console import Failure
from tests.unit.machines import Machine
from tests.waiting import wait_until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dev, "HOME", tmp_path / ".dagster")
    return tmp_path / ".dagster"


def test_nothing_of_a_stack_reaches_the_embedded_mode(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the variables of a stack in the environment
    for name in dev.FOREIGN_VARIABLES:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OWN_VARIABLE", "kept")

    # When the embedded mode's environment is made
    environment = dev.environment()

    # Then it knows neither bucket nor broker, and its own instance
    assert not set(dev.FOREIGN_VARIABLES) & set(environment)
    assert environment["OWN_VARIABLE"] == "kept"
    assert environment["DAGSTER_HOME"] == str(home)
    assert "telemetry: {enabled: false}" in (home / "dagster.yaml").read_text()


def test_dagsters_databases_are_made_before_two_processes_would_make_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which leaves some of them broken for good."""
    monkeypatch.setattr(dev, "python", lambda: Path(sys.executable))
    monkeypatch.setattr(dev, "folder", lambda: home.parent)
    monkeypatch.setattr(dev, "prepare", lambda: None)

    def begin(*_: object) -> None:
        raise Failure(" ".join(sorted(each.name for each in home.rglob("*.db"))))

    monkeypatch.setattr(dev, "DevWorker", begin)

    # When the embedded mode starts for the first time
    # Then they are there before its worker is, and no start makes them again
    with pytest.raises(Failure, match=r"^index.db runs.db schedules.db$"):
        dev.demo()

    monkeypatch.setattr(subprocess, "run", None)
    dev.make_databases()


def test_a_port_in_use_is_named_with_another_way_to_start(machine: Machine) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        result = machine.script("dev", DAGIT_PORT=str(port))

    assert result.returncode == 1
    assert f"Port {port} is taken by another program" in result.stderr
    assert "make dev DAGIT_PORT=3010" in result.stderr


@pytest.mark.parametrize("text", ["http", "0", "70000"])
def test_a_port_that_is_none_is_named(text: str) -> None:
    with pytest.raises(Failure, match=f"DAGIT_PORT={text} is no port"):
        dev.require_free_port(text)


def test_a_dagit_that_ends_at_once_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("the reason\n")
    process = subprocess.Popen([sys.executable, "-c", "exit(1)"])
    process.wait()

    with pytest.raises(Failure, match=r"Dagit does not start.*\n\nthe reason"):
        dev.wait_until_answers("http://127.0.0.1:9", process, log)


def test_dagster_heeds_interrupts_also_where_make_dev_is_in_the_background(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a shell that lets what it puts in the background ignore SIGINT
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(dev, "folder", lambda: home)
        # When Dagster is started, then it does not ignore it
        ignores = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
        assert dev.start([sys.executable, "-c", ignores]).wait() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_stopping_ends_all_that_dagit_started_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that ignores a polite end, with a child
    monkeypatch.setattr(dev, "STOP_TIMEOUT_SECS", 0.2)
    command = "trap '' INT; sleep 60 & echo $!; wait; sleep 60"
    process = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout
    with process.stdout:
        child = int(process.stdout.readline())

        # When it is stopped
        dev.stop(process)

        # Then its pipe is closed: nobody holds the other end any more
        assert process.stdout.read() == b""
    assert process.returncode == -signal.SIGKILL
    # Files are closed a moment before a process is gone, so its end is waited for.
    wait_until(lambda: process_state(child), 10, "the child is gone", until=LIFELESS_STATES.__contains__)


class Answering(BaseHTTPRequestHandler):
    """Dagit, as far as waiting for it goes: /server_info answers 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_companys_proxy_is_not_asked_for_pages_of_this_host(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given a proxy in the environment that does not answer, and a Dagit that does
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "internal.example")
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    process = subprocess.Popen(["sleep", "60"])
    try:
        # When it is waited for, then it is found
        dev.wait_until_answers(f"http://127.0.0.1:{server.server_port}", process, tmp_path / "log")
    finally:
        process.kill()
        process.wait()
        server.shutdown()
        thread.join()
        server.server_close()

    # And Dagster's own processes go past the proxy as well
    assert home.name == ".dagster"
    assert dev.environment()["no_proxy"] == "127.0.0.1,localhost,internal.example"
