"""The embedded mode's worker: it is there while the mode lasts, and nothing of it is left afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_stack.services.health import LIFELESS_STATES, process_state
from scripts import dev_worker
from scripts.console import ROOT
from scripts.dev_worker import DevWorker
from tests.waiting import wait_until

#: Says who it is, and lives on.
LIVING = "echo $$ > {file}; exec sleep 60"


@pytest.fixture
def pid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process that stands in for Celery writes its id."""
    file = tmp_path / "pid"
    monkeypatch.setattr(dev_worker, "LOG", tmp_path / "logs" / "dev-worker.log")
    monkeypatch.setattr(dev_worker, "command", lambda: ["bash", "-c", LIVING.format(file=file)])
    return file


def pid_in(file: Path) -> int:
    text = wait_until(lambda: file.read_text() if file.exists() else "", 10, "the worker wrote its id")
    return int(text)


def test_it_ends_with_the_mode_and_its_broker_is_gone(tmp_path: Path, pid_file: Path) -> None:
    # Given messages of an earlier time
    old = tmp_path / "broker" / "messages" / "old.msg"
    old.parent.mkdir(parents=True)
    old.write_text("{}")

    # While the mode lasts its worker runs, on an empty broker
    with DevWorker(tmp_path, dict(os.environ)):
        pid = pid_in(pid_file)
        assert process_state(pid) not in LIFELESS_STATES
        assert not old.exists()
        (tmp_path / "heartbeat").touch()
        (tmp_path / "broker").mkdir()

    # Then nothing is left
    assert process_state(pid) in LIFELESS_STATES
    assert not (tmp_path / "broker").exists()
    assert not (tmp_path / "heartbeat").exists()


def test_one_that_ignores_its_end_is_ended_with_its_children(
    tmp_path: Path, pid_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev_worker, "STOP_TIMEOUT_SECS", 0.2)
    stubborn = f"trap '' TERM; sleep 60 & echo $! > {pid_file}; wait; sleep 60"
    monkeypatch.setattr(dev_worker, "command", lambda: ["bash", "-c", stubborn])

    with DevWorker(tmp_path, dict(os.environ)):
        child = pid_in(pid_file)

    wait_until(lambda: process_state(child), 10, "the child is gone", until=LIFELESS_STATES.__contains__)


def test_one_that_user_code_ended_is_started_again(
    tmp_path: Path, pid_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DevWorker(tmp_path, dict(os.environ)) as worker:
        # Given a worker that was killed
        first = pid_in(pid_file)
        pid_file.unlink()
        worker.revive()
        assert not pid_file.exists(), "revived while it lived"
        os.kill(first, signal.SIGKILL)

        # When the mode looks after it
        def look() -> bool:
            worker.revive()
            return pid_file.exists()

        wait_until(look, 10, "the worker is back", pause=0.05)

        # Then another one runs, and the terminal says why
        assert pid_in(pid_file) != first
        assert "the worker ended with code -9, starting it again" in capsys.readouterr().out


def test_a_killed_mode_leaves_no_worker_behind(tmp_path: Path) -> None:
    # Given a process that started the worker's own command, with something harmless in Celery's place
    (tmp_path / "celery").mkdir()
    (tmp_path / "celery" / "__init__.py").touch()
    (tmp_path / "celery" / "__main__.py").write_text(
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-m', 'scripts.dev_worker'])"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout
    with parent.stdout:
        worker = int(parent.stdout.readline())

        # When it is killed
        parent.kill()
        parent.wait()

        # Then the worker ends by itself
        wait_until(
            lambda: process_state(worker), 30, "the worker is gone", until=LIFELESS_STATES.__contains__
        )


def test_it_takes_steps_from_the_queues_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dagster,heavy" in dev_worker.command()

    monkeypatch.setenv("DEV_QUEUES", "dagster,mine")

    assert "dagster,mine" in dev_worker.command()
