"""The tasks that a worker knows. Each loads Dagster when it is first executed, thus in a process of the pool.

A worker's main process hands out messages and never executes one: without Dagster it takes 40 MB, with it 130.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from celery import Celery, Task

from dagster_stack.messaging.task_names import RUN_TASK, STEP_TASK, STOCK_TASKS
from dagster_stack.worker.request import content


def register_tasks(app: Celery) -> None:
    """Make an app know all tasks."""

    # Any arguments: a message of somebody else must not fail before it is looked at.
    @app.task(bind=True, name=STEP_TASK, ignore_result=True)
    def execute_step(self: Task, *args: Any, **kwargs: Any) -> None:
        def execute() -> None:
            from dagster_stack.step.step_execution import execute_step

            execute_step(self, content(args, kwargs))

        executed(self, args, kwargs, execute)

    @app.task(bind=True, name=RUN_TASK, ignore_result=True)
    def execute_run(self: Task, *args: Any, **kwargs: Any) -> None:
        def execute() -> None:
            from dagster_stack.run.run_execution import execute_run

            execute_run(self, content(args, kwargs))

        executed(self, args, kwargs, execute)

    for name in STOCK_TASKS:
        register_stock_task(app, name)


def executed(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], execute: Callable[[], Any]) -> Any:
    """What a task returns: here, or in a project of several code locations from the process of its own."""
    from dagster_stack.pool import location_process

    if location_process.is_needed():
        return location_process.execute(task, args, kwargs)
    return execute()


def register_stock_task(app: Celery, name: str) -> None:
    @app.task(bind=True, name=name)
    def execute(self: Task, *args: Any, **kwargs: Any) -> Any:
        return executed(self, args, kwargs, lambda: stock_function(name)(self, *args, **kwargs))


@cache
def stock_function(name: str) -> Any:
    """What dagster-celery does for a task of this name; its first argument is the task."""
    from dagster_celery import tasks

    # Registered with an app that nobody uses: ours has its own task under this name.
    stock_task = getattr(tasks, STOCK_TASKS[name])(Celery(set_as_current=False))
    return stock_task.run.__func__
