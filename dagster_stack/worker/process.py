"""What a worker process keeps warm between steps."""

import os
from contextlib import ExitStack
from functools import cache

from dagster import DagsterInstance


@cache
def warm_instance() -> DagsterInstance:
    """The process's Dagster instance, open until the process ends."""
    return ExitStack().enter_context(DagsterInstance.get())


# Connections and what came through them belong to the process that opened them.
os.register_at_fork(after_in_child=warm_instance.cache_clear)
