"""Replaces a process of the pool in which a task left something that can't be undone.

billiard recycles a process by itself when it is too large or has done its number of tasks. This is one reason more, by
the same way: after the message is acknowledged, and without a loss.
"""

import sys
from collections.abc import Callable
from typing import Any

from billiard.pool import EX_RECYCLE
from billiard.pool import Pool as BlockingPool
from celery import Celery
from celery.concurrency.asynpool import Worker
from celery.concurrency.prefork import TaskPool

from dagster_stack.worker.prefork_pool import TidyPool


class _Process:
    is_to_be_replaced = False


def replace_process() -> None:
    """Let this process take no task after the one that it executes."""
    _Process.is_to_be_replaced = True


def is_to_be_replaced() -> bool:
    return _Process.is_to_be_replaced


class Replaceable:
    """A pool's process that leaves after a task that asked for it. Non-daemonic threads do not keep it."""

    wait_for_job: Callable[[], Any]

    def on_loop_start(self, pid: int) -> None:
        wait_for_job = self.wait_for_job

        def wait_unless_replaced() -> Any:
            if is_to_be_replaced():
                # billiard's own: it remembers the code.
                sys.exit(EX_RECYCLE)
            return wait_for_job()

        self.wait_for_job = wait_unless_replaced
        super().on_loop_start(pid)  # type: ignore[misc]


class ReplaceableWorker(Replaceable, Worker):
    """Celery's."""


class BlockingWorker(Replaceable, BlockingPool.Worker):
    """The same on a broker without an event loop, as the embedded mode has."""


class Processes(TidyPool):
    Worker = ReplaceableWorker


class BlockingProcesses(BlockingPool):
    Worker = BlockingWorker


class Pool(TaskPool):
    Pool = Processes
    BlockingPool = BlockingProcesses


def install(app: Celery) -> None:
    """Let the workers of an app replace such processes."""
    app.conf.worker_pool = f"{Pool.__module__}:{Pool.__name__}"
