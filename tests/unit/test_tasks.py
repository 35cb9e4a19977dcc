"""The tasks of a worker: known to its main process, which stays without Dagster, and executed by the others."""

from typing import Any

import pytest
from celery import Celery, _state

from dagster_stack import tasks
from dagster_stack.messaging.task_names import RUN_TASK, STEP_TASK, STOCK_TASKS
from dagster_stack.run import run_execution
from dagster_stack.step import step_execution
from dagster_stack.tasks import register_tasks, stock_function
from tests.unit.fresh_process import look

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
    return look(LOOK, CELERY_BROKER_URL="amqp://rabbitmq//")


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


def test_a_worker_knows_this_stacks_tasks_and_all_of_dagster_celery(main_process: Any) -> None:
    assert main_process["tasks"] == sorted([RUN_TASK, STEP_TASK, "execute_job", "execute_plan", "resume_job"])


@pytest.mark.parametrize("task", [STEP_TASK, RUN_TASK])
def test_a_step_or_run_needs_no_result(app: Celery, task: str) -> None:
    """The event log says how it ended: a result would be a message that nobody takes."""
    assert app.tasks[task].ignore_result is True


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What was to be executed: the task's name, and what it got."""
    executed: list[tuple[str, Any]] = []
    for module, name in ((step_execution, "execute_step"), (run_execution, "execute_run")):
        monkeypatch.setattr(module, name, lambda task, message: executed.append((task.name, message)))
    return executed


@pytest.mark.parametrize("task", [STEP_TASK, RUN_TASK])
def test_the_task_of_a_step_or_run_executes_its_message(
    app: Celery, executed: list[tuple[str, Any]], task: str
) -> None:
    app.tasks[task](message={"run_id": "run"})

    assert executed == [(task, {"run_id": "run"})]


@pytest.mark.parametrize("task", [STEP_TASK, RUN_TASK])
def test_a_task_with_other_arguments_is_looked_at_as_a_whole_and_never_fails_before(
    app: Celery, executed: list[tuple[str, Any]], task: str
) -> None:
    """Somebody else's message: why it was refused must be seen."""
    app.tasks[task]("hello", message={}, more=1)

    assert executed == [(task, {"args": ("hello",), "kwargs": {"message": {}, "more": 1}})]


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
