"""What a worker process keeps warm between steps, and how it stays the same for each of them."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache

from dagster import DagsterInstance

#: Signals whose handlers a step must not change for the next one.
KEPT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)


@cache
def warm_instance() -> DagsterInstance:
    """The process's Dagster instance, open until the process ends."""
    return ExitStack().enter_context(DagsterInstance.get())


# Connections and what came through them belong to the process that opened them.
os.register_at_fork(after_in_child=warm_instance.cache_clear)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Undo what user code does to the process: folder, environment, signals, streams, path, umask.

    Threads and module globals stay: a process is recycled for those (`worker_max_tasks_per_child`).
    """
    folder, environment, path = _folder(), dict(os.environ), list(sys.path)
    streams, arguments = (sys.stdin, sys.stdout, sys.stderr), list(sys.argv)
    handlers = {number: signal.getsignal(number) for number in KEPT_SIGNALS}
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield
    finally:
        os.umask(umask)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.argv, sys.path[:] = arguments, path
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        if folder and _folder() != folder:
            # It may be gone meanwhile.
            with suppress(FileNotFoundError):
                os.chdir(folder)


def _folder() -> str | None:
    """The working directory; None when user code removed it from under us."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
