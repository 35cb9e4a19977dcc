"""Processes that die with their task: of what, and that the database and the run's log learn of it, once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from celery import Celery, _state
from celery.exceptions import Reject, Terminated, WorkerLostError
from celery.worker import state
from dagster import DagsterInstance, DagsterRun
from kombu.message import Message
from sqlalchemy import make_url

from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.task_names import RUN_TASK, STEP_TASK
from dagster_stack.settings import CeleryConfig, Settings
from dagster_stack.store import connections
from dagster_stack.tasks import register_tasks
from dagster_stack.worker import lost_processes, request
from dagster_stack.worker.lost_processes import ENDED_ITSELF, DeathCauses, LostProcess, database
from dagster_stack.worker.memory import Memory
from dagster_stack.worker.request import Request
from scripts.console import ROOT
from tests.unit.fresh_process import look

GIB = 2**30
LOST = LostProcess("dagster@host", 17, "killed by SIGSEGV", "run-1", "a", 2)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def version_2(folder: Path, kills: int = 0, limit: str = str(2 * GIB)) -> Path:
    """A container's control group as today's systems show it."""
    events = f"low 0\nhigh 0\nmax 3512\noom 7\noom_kill {kills}\noom_group_kill 0\n"
    return write(
        folder, {"memory.max": f"{limit}\n", "memory.peak": f"{int(1.99 * GIB)}\n", "memory.events": events}
    )


def version_1(folder: Path, kills: int = 0, limit: int = 2 * GIB) -> Path:
    """The same on older ones, and on this project's test machine."""
    control = f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
    return write(
        folder,
        {
            "memory/memory.limit_in_bytes": f"{limit}\n",
            "memory/memory.max_usage_in_bytes": f"{int(1.99 * GIB)}\n",
            "memory/memory.oom_control": control,
        },
    )


# --- what the kernel says ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [version_1, version_2])
def test_limit_peak_and_kills_are_read_from_both_versions(
    tmp_path: Path, version: Callable[..., Path]
) -> None:
    memory = Memory.read(version(tmp_path, kills=3))

    assert memory == Memory(2 * GIB, int(1.99 * GIB), 3)
    assert str(memory) == "limit 2.0 GiB, peak 1.99 GiB"


def test_without_a_limit_none_is_named(tmp_path: Path) -> None:
    assert Memory.read(version_2(tmp_path / "2", limit="max")).limit is None
    assert str(Memory.read(version_1(tmp_path / "1", limit=9223372036854771712))) == "peak 1.99 GiB"


def test_a_machine_that_says_nothing_has_had_no_kills(tmp_path: Path) -> None:
    assert Memory.read(tmp_path) == Memory(None, None, 0)
    assert str(Memory.read(tmp_path)) == ""


# --- of what a process died ----------------------------------------------------------------------------------------


def lost_with(status: int) -> WorkerLostError:
    """What billiard says of a process that ended with this status."""
    return WorkerLostError(f"Worker exited prematurely: {human_status(status)} Job: 5.")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lost_with(-11), "killed by SIGSEGV"),
        (lost_with(-9), "killed by SIGKILL"),
        (lost_with(-15), "killed by SIGTERM"),
        (lost_with(-99), "killed by signal 99"),
        (lost_with(3), "os._exit or sys.exit with code 3"),
        (lost_with(0), "os._exit or sys.exit with code 0"),
        (SystemExit(4), "os._exit or sys.exit with code 4"),
        (SystemExit(), "os._exit or sys.exit with code 0"),
        (SystemExit("that was it"), "os._exit or sys.exit with code 1"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (WorkerLostError("of something new"), "of something new"),
    ],
)
def test_the_reason_names_the_signal_or_the_exit_code(
    tmp_path: Path, error: BaseException, reason: str
) -> None:
    assert DeathCauses(version_2(tmp_path)).of_error(error) == reason


@pytest.mark.parametrize("version", [version_1, version_2])
def test_a_kill_that_the_kernel_counted_was_for_memory_and_explains_one_loss(
    tmp_path: Path, version: Callable[..., Path]
) -> None:
    # Given a container in which two processes were killed before this worker looked for the first time
    causes = DeathCauses(version(tmp_path, kills=2))
    assert causes.of_error(lost_with(-9)) == "killed by SIGKILL"

    # When the kernel kills two more
    version(tmp_path, kills=4)

    # Then two losses are explained, and a third one is not; nor one that had another end
    assert causes.of_error(lost_with(-11)) == "killed by SIGSEGV"
    for _ in range(2):
        assert causes.of_error(lost_with(-9)) == "killed (out of memory?), limit 2.0 GiB, peak 1.99 GiB"
    assert causes.of_error(lost_with(-9)) == "killed by SIGKILL"


def test_a_loss_is_told_in_the_words_of_the_run() -> None:
    assert str(LOST) == ('Worker dagster@host lost process 17 while it executed step "a": killed by SIGSEGV')
    assert str(LostProcess("runs@host", 8, "killed by SIGKILL", "run-1")) == (
        "Worker runs@host lost process 8 while it drove this run: killed by SIGKILL"
    )
    assert LOST.holder == "dagster@host (process 17)"


# --- what the worker sees ----------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    # Celery gives the tasks of one app to each later one of the process.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    settings = Settings.from_environment({"DAGSTER_HOME": str(tmp_path)})
    config = {"task_acks_late": True, "task_reject_on_worker_lost": True}
    app = make_app(CeleryConfig("memory://localhost", "disabled://", config_source=config), settings)
    register_tasks(app)
    request.install(app)
    yield app
    app.close()
    # Celery's own account of what a process has taken, which outlives each test.
    state.reserved_requests.clear()
    state.active_requests.clear()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[LostProcess]:
    found: list[LostProcess] = []
    monkeypatch.setattr(request, "report_lost", found.append)
    monkeypatch.setattr(DeathCauses, "of_error", lambda self, error: "of this")
    return found


STEP = {"run_id": "run-1", "step_key": "a", "attempt": 2, "code": "x", "version": 2}


class Taken:
    """A message as a worker has taken it, in the hands of process 17; and what the broker is told of it."""

    def __init__(self, app: Celery, message: Any, name: str = STEP_TASK, **headers: Any) -> None:
        self.answers: list[str] = []
        body = json.dumps([[], {"message": message}, {}])
        # As steps are shown in lists: Celery calls that the task's name.
        headers = {"task": name, "id": str(uuid4()), "shadow": "a_job: a", **headers}
        self.request = Request(
            Message(body=body, content_type="application/json", content_encoding="utf-8", headers=headers),
            app=app,
            hostname="dagster@host",
            task=app.tasks[name],
            on_ack=lambda *_: self.answers.append("ack"),
            on_reject=lambda _, __, requeue: self.answers.append(f"requeue {requeue}"),
        )
        self.request.on_accepted(17, 0)

    def fail(self, error: BaseException) -> None:
        try:
            raise error
        except BaseException:
            self.request.on_failure(ExceptionInfo())


@pytest.mark.parametrize("error", [lost_with(-9), SystemExit(4), KeyboardInterrupt()])
def test_a_lost_process_is_told_once_and_its_message_goes_back(
    app: Celery, told: list[LostProcess], error: BaseException
) -> None:
    taken = Taken(app, STEP)

    taken.fail(error)

    assert told == [LostProcess("dagster@host", 17, "of this", "run-1", "a", 2)]
    assert taken.answers == ["requeue True"]


def test_celerys_time_limits_do_not_apply_to_a_step(app: Celery) -> None:
    of_step, of_stock_step = (
        list(Taken(app, STEP, name, timelimit=[60, 30]).request.time_limits)
        for name in (STEP_TASK, "execute_plan")
    )

    assert of_step == [None, None]
    assert of_stock_step == [60, 30]


def test_a_lost_runner_is_told_too(app: Celery, told: list[LostProcess]) -> None:
    Taken(app, {"run_id": "run-1", "code": "x", "version": 2}, RUN_TASK).fail(lost_with(-9))

    assert told == [LostProcess("dagster@host", 17, "of this", "run-1")]


def test_what_failed_in_a_living_process_is_no_loss(app: Celery, told: list[LostProcess]) -> None:
    Taken(app, STEP).fail(ValueError("no"))
    Taken(app, STEP).fail(Reject("later", requeue=True))

    assert told == []


class Pool:
    """Celery's pool, which sends the signal; billiard then reports Terminated, or what the process said."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def terminate_job(self, pid: int, signal: int) -> None:
        self.sent.append((pid, signal))


def test_what_was_ended_on_purpose_is_no_loss(
    app: Celery, told: list[LostProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (Terminated(9), SystemExit(1), lost_with(-9)):
        taken, pool = Taken(app, STEP), Pool()
        taken.request.terminate(pool, signal="SIGKILL")
        taken.fail(error)
        assert pool.sent == [(17, 9)]
        assert taken.answers == ["ack"]
    # And when the whole worker is told to stop at once
    monkeypatch.setattr(state, "should_terminate", 0)
    monkeypatch.setattr(state, "should_terminate", True)
    Taken(app, STEP).fail(lost_with(-15))

    assert told == []


def test_what_ended_its_own_step_since_that_was_not_to_go_on_is_no_loss(
    app: Celery, told: list[LostProcess]
) -> None:
    taken = Taken(app, STEP)

    taken.fail(lost_with(ENDED_ITSELF))

    assert told == []
    assert taken.answers == ["requeue True"]


@pytest.mark.parametrize("signal", ["SIGINT", 2])
def test_what_was_interrupted_is_still_here_until_it_has_ended(
    app: Celery, told: list[LostProcess], monkeypatch: pytest.MonkeyPatch, signal: Any
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    taken, pool = Taken(app, STEP), Pool()

    taken.request.terminate(pool, signal=signal)

    # billiard does not hear of it, which would take any later death of the process for wanted
    assert (sent, pool.sent, taken.answers) == ([(17, 2)], [], [])
    # And when its process dies before it ends well, nobody wonders, and whoever gets its message skips it
    taken.fail(lost_with(-9))
    assert told == []
    assert taken.answers == ["requeue True"]


def test_a_process_that_is_gone_already_is_not_interrupted(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)

    Taken(app, STEP).request.terminate(Pool(), signal="SIGINT")


@pytest.mark.parametrize("message", ["text", {}, {"run_id": 5}, None])
def test_a_message_that_names_no_run_tells_nobody(app: Celery, told: list[LostProcess], message: Any) -> None:
    taken = Taken(app, message)

    taken.fail(lost_with(-9))

    assert told == []
    assert taken.answers == ["requeue True"]


def test_a_stock_task_is_not_told(app: Celery, told: list[LostProcess]) -> None:
    Taken(app, STEP, "execute_plan").fail(lost_with(-9))

    assert told == []


# --- the process that tells ----------------------------------------------------------------------------------------


def test_the_lease_is_lost_before_dagster_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets the step next waits for it."""
    done: list[Any] = []
    monkeypatch.setattr(lost_processes, "database", lambda: "postgresql://")
    monkeypatch.setattr(lost_processes, "mark_lost", lambda lost, url: done.append(("lease", lost, url)))
    monkeypatch.setattr(lost_processes, "report", lambda lost: done.append(("run", lost)))

    lost_processes.main(json.dumps({"worker": "dagster@host", "pid": 17, "reason": "x", "run_id": "r"}))

    lost = LostProcess("dagster@host", 17, "x", "r")
    assert done == [("lease", lost, "postgresql://"), ("run", lost)]


def test_losing_a_lease_needs_no_dagster() -> None:
    loaded = look(
        """
import json, sys
import dagster_stack.worker.lost_processes, dagster_stack.store.leases
print(json.dumps([name for name in ("dagster", "celery") if name in sys.modules]))
"""
    )

    assert loaded == []


def test_the_run_says_it_on_its_step(instance: DagsterInstance, caplog: pytest.LogCaptureFixture) -> None:
    run = instance.add_run(DagsterRun(job_name="j", run_id=str(uuid4())))

    lost_processes.report(LostProcess("w", 1, "killed by SIGKILL", run.run_id, "a", 1))
    lost_processes.report(LostProcess("w", 2, "killed by SIGKILL", run.run_id))
    lost_processes.report(LostProcess("w", 3, "killed by SIGKILL", "unknown"))

    events = [entry.dagster_event for entry in instance.all_logs(run.run_id)]
    assert [(event.event_type_value, event.step_key, event.message) for event in events if event] == [
        ("ENGINE_EVENT", "a", 'Worker w lost process 1 while it executed step "a": killed by SIGKILL'),
        ("ENGINE_EVENT", None, "Worker w lost process 2 while it drove this run: killed by SIGKILL"),
    ]
    assert "nobody knows run unknown" in caplog.text


def test_the_database_is_the_one_that_dagster_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables that dagster.yaml names."""
    fields = yaml.safe_load((ROOT / "dagster.yaml").read_text())["storage"]["custom"]["config"]["postgres_db"]
    assert sorted(each["env"] for each in fields.values()) == sorted(connections.VARIABLES)
    for name, value in {"HOST": "pg", "PORT": "5433", "DB": "d", "USER": "u", "PASSWORD": "p@/:"}.items():
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{name}", value)

    url = make_url(database() or "")

    assert (url.host, url.port, url.database, url.username, url.password) == ("pg", 5433, "d", "u", "p@/:")


def test_without_postgres_there_is_no_lease_to_lose() -> None:
    assert database() is None


def test_telling_that_fails_is_logged_and_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a process that fails, and one that can't be started
    for program in ("/bin/false", "/no/such/python"):
        caplog.clear()
        monkeypatch.setattr(sys, "executable", program)

        lost_processes.report_lost(LOST).join(10)

        assert "run run-1 could not be told that dagster@host (process 17)" in caplog.text


def test_telling_starts_this_module_with_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Teller(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **named: Any) -> None:
            started.append(command)
            super().__init__(["true"], **named)

    monkeypatch.setattr(subprocess, "Popen", Teller)

    lost_processes.report_lost(LOST).join(10)

    ((python, option, module, argument),) = started
    assert (python, option, module) == (sys.executable, "-m", "dagster_stack.worker.lost_processes")
    assert LostProcess(**json.loads(argument)) == LOST
