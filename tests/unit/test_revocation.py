"""Tasks that are called back from a real worker: what works on is really killed, and the worker goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from celery import Celery
from celery.backends.rpc import RPCBackend
from celery.worker import state
from celery.worker.control import Panel

from dagster_stack.messaging.task_names import STEP_TASK
from dagster_stack.worker import revocation
from scripts.console import ROOT
from tests.unit.looping_worker import FOLDER_VARIABLE, make_app
from tests.waiting import wait_until


class Worker:
    """A worker with one process; `says` is what a task told so far."""

    def __init__(self, folder: Path, app: Celery) -> None:
        self._folder, self._app = folder, app
        self.log = folder / "log"

    def sends(self, name: str, task: str = "work", task_id: str = "", **arguments: object) -> str:
        return str(self._app.send_task(task, (name,), arguments, task_id=task_id or str(uuid4())).id)

    def says(self, name: str) -> list[str]:
        file = self._folder / name
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, name: str, what: str) -> str:
        return wait_until(
            lambda: next((line for line in self.says(name) if line.startswith(what)), ""),
            20,
            f"{name} {what}\n{self.log.read_text()}",
            pause=0.05,
        )

    def revokes(self, *ids: str, signal: str) -> None:
        self._app.control.revoke(list(ids), terminate=True, signal=signal)

    def messages(self) -> list[Path]:
        return list((self._folder / "messages").iterdir())

    def unacknowledged(self) -> list[str]:
        """The tasks that it has taken and that have not ended."""
        active = self._app.control.inspect(timeout=2).active() or {}
        return [task["id"] for tasks in active.values() for task in tasks]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    tmp_path = tmp_path_factory.mktemp("worker")
    app = make_app(tmp_path)
    worker = Worker(tmp_path, app)
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.unit.looping_worker",
        "worker",
        "-c",
        "1",
        "-n",
        "w@here",
    ]
    with (
        worker.log.open("w") as log,
        subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle", "-l", "INFO"],
            env={**os.environ, FOLDER_VARIABLE: str(tmp_path)},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            wait_until(lambda: " ready." in worker.log.read_text(), 60, "the worker is ready", pause=0.1)
            yield worker
        finally:
            # The processes of its pool die with it.
            process.kill()
            app.close()


def test_what_a_killed_process_has_started_is_gone_before_its_task_is_executed_again(worker: Worker) -> None:
    """Also what has forked twice, ignores signals, and holds all that tells a parent of its child's end."""
    worker.sends("leaving", task="leave")

    worker.wait_for("leaving", "leaves")

    assert worker.wait_for("leaving", "again") == "again, with []"
    assert "has left others, which are killed" in worker.log.read_text()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_task_that_does_not_mind_interrupts_is_killed_and_its_worker_takes_the_next(worker: Worker) -> None:
    # Given a task that works on when it is interrupted
    stubborn = worker.sends("stubborn", seconds=120)
    pid = int(worker.wait_for("stubborn", "began").split()[1])
    worker.revokes(stubborn, signal="SIGINT")
    worker.wait_for("stubborn", "interrupted")

    # Then its worker still has it, and begins nothing else
    worker.sends("next")
    assert worker.unacknowledged() == [stubborn]
    assert worker.says("next") == []

    # And when it is killed
    worker.revokes(stubborn, signal="SIGKILL")

    # Then its process is gone, another one takes what waits, and nobody gets its message again
    wait_until(lambda: not is_alive(pid), 10, "the process is dead", pause=0.05)
    worker.wait_for("next", "ended")
    # A message is answered a moment after its task has ended.
    wait_until(lambda: not worker.unacknowledged(), 10, "all are answered", pause=0.05)
    assert worker.messages() == []
    assert [line.split()[0] for line in worker.says("stubborn")] == ["began", "interrupted"]


def test_a_task_that_ends_when_it_is_interrupted_is_acknowledged_and_its_process_goes_on(
    worker: Worker,
) -> None:
    willing = worker.sends("willing", on_interrupt="end", seconds=120)
    pid = worker.wait_for("willing", "began").split()[1]

    worker.revokes(willing, signal="SIGINT")

    worker.wait_for("willing", "ended")
    wait_until(lambda: not worker.unacknowledged(), 10, "the task is acknowledged")
    # And a kill that comes too late hits nobody
    worker.revokes(willing, signal="SIGKILL")
    worker.sends("after it")
    worker.wait_for("after it", f"began {pid}")
    worker.wait_for("after it", "ended")


def test_a_task_that_waits_is_dropped(worker: Worker) -> None:
    worker.sends("first", seconds=1)
    worker.wait_for("first", "began")
    waiting = worker.sends("waiting")

    worker.revokes(waiting, signal="SIGINT")
    worker.sends("last")

    worker.wait_for("last", "ended")
    assert worker.says("waiting") == []
    assert worker.messages() == []


def test_a_step_that_was_called_back_can_come_again_under_its_id(worker: Worker) -> None:
    """Another execution of the same attempt, in a run that goes on, has the same id."""
    first = worker.sends("called back", STEP_TASK, on_interrupt="end", seconds=120)
    worker.wait_for("called back", "began")
    worker.revokes(first, signal="SIGINT")
    worker.wait_for("called back", "ended")

    worker.sends("again", STEP_TASK, task_id=first)

    worker.wait_for("again", "ended")


def test_a_step_that_waits_is_for_its_log_to_skip_and_is_not_killed_when_it_begins(worker: Worker) -> None:
    worker.sends("a while", STEP_TASK, seconds=1)
    worker.wait_for("a while", "began")
    waiting = worker.sends("waits", STEP_TASK)

    worker.revokes(waiting, signal="SIGKILL")

    worker.wait_for("waits", "ended")
    assert [line.split()[0] for line in worker.says("waits")] == ["began", "ended"]


def test_a_process_that_survived_an_interrupt_and_dies_later_is_a_lost_one(worker: Worker) -> None:
    """billiard remembers of a process that it was terminated, and would take its later death for wanted."""
    survivor = worker.sends("survivor", on_interrupt="end", seconds=120)
    pid = int(worker.wait_for("survivor", "began").split()[1])
    worker.revokes(survivor, signal="SIGINT")
    worker.wait_for("survivor", "ended")

    # When the same process is killed in another task, by nobody who called it back
    worker.sends("other", seconds=2)
    worker.wait_for("other", f"began {pid}")
    os.kill(pid, 9)

    # Then its message comes again
    wait_until(lambda: len(worker.says("other")) >= 2, 20, "it is begun again", pause=0.05)
    worker.wait_for("other", "ended")
    assert [line.split()[0] for line in worker.says("other")] == ["began", "began", "ended"]


def test_tasks_that_are_with_nobody_cost_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Thousands of steps that wait: Celery would ask the broker for the result of each, in the event loop."""

    def asked(*_: Any) -> NoReturn:
        raise AssertionError("the result backend is asked")

    monkeypatch.setattr(RPCBackend, "get_task_meta", asked)
    monkeypatch.setattr(RPCBackend, "store_result", asked)
    revocation.install()
    with Celery("rpc", broker="memory://", backend="rpc://", set_as_current=False) as app:
        ids = [str(uuid4()) for _ in range(5000)]

        Panel.data["revoke"](SimpleNamespace(app=app), task_id=ids, terminate=True, signal="SIGINT")

    assert all(each in state.revoked for each in ids)
    assert caplog.records == []
    state.revoked.clear()
