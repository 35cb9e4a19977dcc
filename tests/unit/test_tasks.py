"""The tasks of a worker: known to its main process, which stays without Dagster, and executed by the others."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from celery import Celery, _state

from dagster_stack.broker import tasks
from dagster_stack.broker.tasks import STEP_TASK, STOCK_TASKS, register_tasks, stock_function
from dagster_stack.worker import step_execution
from scripts.console import ROOT

#: Loads what a worker's main process loads, and says what that was.
LOOK = """
import json, sys
from dagster_stack.app import app
app.finalize()
print(json.dumps({
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "tasks": sorted(name for name in app.tasks if not name.startswith("celery.")),
}))
"""


@pytest.fixture(scope="module")
def main_process() -> Any:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK],
        cwd=ROOT,
        env={**kept, "CELERY_BROKER_URL": "amqp://rabbitmq//"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _tasks_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery hands each task to all apps of a process that are made later: a worker has one, this process many."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))


@pytest.fixture
def app() -> Celery:
    app = Celery("a", broker="memory://localhost", set_as_current=False)
    register_tasks(app)
    app.finalize()
    return app


def test_a_workers_main_process_does_without_dagster(main_process: Any) -> None:
    """It hands out messages and never executes one: 40 MB instead of 130 for each worker."""
    loaded = set(main_process["loaded"])

    assert "celery" in loaded
    assert (
        loaded & {"dagster", "dagster_celery", "dagster_aws", "dagster_postgres", "sqlalchemy", "boto3"}
        == set()
    )
    assert "pipelines" not in loaded


def test_a_worker_knows_this_stacks_task_and_all_of_dagster_celery(main_process: Any) -> None:
    assert main_process["tasks"] == sorted([STEP_TASK, "execute_job", "execute_plan", "resume_job"])


def test_a_step_needs_no_result(app: Celery) -> None:
    """The event log says how it ended: a result would be a message that nobody takes."""
    assert app.tasks[STEP_TASK].ignore_result is True


def test_the_task_of_a_step_executes_its_message(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        step_execution, "execute_step", lambda task, message: executed.append((task.name, message))
    )

    app.tasks[STEP_TASK](message={"run_id": "run"})

    assert executed == [(STEP_TASK, {"run_id": "run"})]


@pytest.mark.parametrize("name", STOCK_TASKS)
def test_a_stock_task_does_what_dagster_celerys_own_does(name: str) -> None:
    """The stock executor and launcher send these names and arguments, and get what dagster-celery returns."""
    from dagster_celery import tasks as stock

    own = getattr(stock, STOCK_TASKS[name])(Celery(set_as_current=False))

    assert own.name == name
    code = stock_function(name).__code__
    assert code is own.run.__func__.__code__
    assert code.co_filename == stock.__file__


@pytest.mark.parametrize("name", STOCK_TASKS)
def test_a_stock_task_hands_its_arguments_on(app: Celery, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[Any] = []

    def function(task: Any, *arguments: Any, **named: Any) -> str:
        calls.append((task.name, arguments, named))
        return "what dagster-celery returns"

    monkeypatch.setattr(tasks, "stock_function", lambda of: {name: function}[of])

    assert app.tasks[name]({"a": 1}, execution_json=2) == "what dagster-celery returns"

    assert calls == [(name, ({"a": 1},), {"execution_json": 2})]
