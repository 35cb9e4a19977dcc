"""The instance that a worker process keeps between steps, and the process's name in leases."""

import os
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import DagsterInstance


class _Process:
    """The process of the pool whose work this one does."""

    pid: int | None = None


def work_for(pool_process: int) -> None:
    """Let this process's leases bear the name of a pool process: a worker only knows its pool's."""
    _Process.pid = pool_process


def works_for_another() -> bool:
    """Whether it does."""
    return _Process.pid is not None


def holder(worker: str) -> str:
    """This process's name as the holder of a lease."""
    return f"{worker} (process {_Process.pid or os.getpid()})"


@cache
def warm_instance() -> "DagsterInstance":
    """The process's Dagster instance, open until the process ends."""
    from dagster import DagsterInstance

    return ExitStack().enter_context(DagsterInstance.get())


# Connections and what came through them belong to the process that opened them.
os.register_at_fork(after_in_child=warm_instance.cache_clear)
