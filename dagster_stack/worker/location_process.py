"""In a project of several code locations: a process for each of them behind each process of the pool.

The pool's process loads no user code. It hands what it gets to the process of its location, which does all that the
pool's does in a project of one, and stays warm. Which of them stay, memory says: those that were used last. As a program,
this module is such a process.
"""

import gc
import logging
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from celery import Celery, Task
from celery.exceptions import Reject

from dagster_stack.errors import StackError
from dagster_stack.project.locations import location_of_message, several
from dagster_stack.worker.child import Child, Parent, die_likewise
from dagster_stack.worker.process import work_for, works_for_another

logger = logging.getLogger(__name__)

#: What a task may ask of its request.
REQUEST = ("id", "hostname", "delivery_info", "timelimit", "shadow", "reply_to", "correlation_id", "headers")


@dataclass(frozen=True)
class Setup:
    """What a location's process has to know of the pool's, whose work it does."""

    location: str
    pool_process: int
    #: The descriptor by which it sees that its worker was told to stop.
    leaving: int
    #: What lay in shared memory before the pool; None: other processes use it too.
    shared_memory: list[str] | None
    #: Whether user code is not to see the broker's address.
    withholds_broker: bool


@dataclass(frozen=True)
class Outcome:
    """How a task ended: one of these, or with a result."""

    result: Any = None
    rejected: str | None = None
    is_requeued: bool = False
    error: str | None = None
    #: Whether the process may do nothing more.
    is_over: bool = False


class LocationProcesses:
    """Those of one process of the pool. Together they have no more memory than a process of the pool may have."""

    def __init__(
        self, setup: "Mapping[str, Any]", environment: Mapping[str, str], most_bytes: int | None
    ) -> None:
        self._setup = setup
        self._environment = environment
        self._most_bytes = most_bytes
        #: By location, the one that was used last at the end.
        self._kept: OrderedDict[str, Child] = OrderedDict()

    def execute(self, location: str, order: Mapping[str, Any]) -> Outcome:
        """Let the location's process do what a task is to do. Does not return when that process dies of it."""
        child = self._kept.get(location)
        if child and (outcome := self._try(child, order)):
            return self._after(location, outcome)
        # None so far, or one that had died before it got this.
        self._end(location)
        child = self._kept[location] = Child(
            __name__, inherited=[self._setup["leaving"]], environment=self._environment
        )
        child.tell(**asdict(Setup(location=location, **self._setup)))
        if outcome := self._try(child, order):
            return self._after(location, outcome)
        die_likewise(child.wait())

    def _try(self, child: Child, order: Mapping[str, Any]) -> Outcome | None:
        """None: it died without having begun."""
        has_begun = False
        with interrupts_for(child):
            child.tell(**order)
            for heard in child.hear():
                if "has_begun" not in heard:
                    return Outcome(**heard)
                has_begun = True
        if has_begun:
            die_likewise(child.wait())
        return None

    def _after(self, location: str, outcome: Outcome) -> Outcome:
        self._kept.move_to_end(location)
        if outcome.is_over:
            self._end(location)
        while self._kept and self._most_bytes and self._bytes() > self._most_bytes:
            self._end(next(iter(self._kept)))
        return outcome

    def _bytes(self) -> int:
        return sum(resident_bytes(child.pid) for child in self._kept.values())

    def _end(self, location: str) -> None:
        if child := self._kept.pop(location, None):
            child.kill()


def resident_bytes(pid: int) -> int:
    import psutil

    try:
        size: int = psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return size


@contextmanager
def interrupts_for(child: Child) -> Iterator[None]:
    """A worker interrupts a step by a signal to the process of its pool."""
    before = signal.signal(signal.SIGINT, lambda number, _: child.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- a process of the pool -----------------------------------------------------------------------------------


class _Process:
    """This one, which has those of locations, once they are needed."""

    locations: LocationProcesses | None = None


def is_needed() -> bool:
    """Whether user code is to be executed in another process than this one."""
    return several() and not works_for_another()


def execute(task: Task, arguments: Any, named: Any) -> Any:
    """Do what a task is to do in the process of its code location; returns and raises what that would."""
    if _Process.locations is None:
        _Process.locations = _made(task.app)
    request = {name: getattr(task.request, name, None) for name in REQUEST}
    order = {"task": task.name, "arguments": arguments, "named": named, "request": request}
    outcome = _Process.locations.execute(location_of_message([arguments, named]), order)
    if outcome.rejected is not None:
        raise Reject(outcome.rejected, requeue=outcome.is_requeued)
    if outcome.error is not None:
        raise StackError(outcome.error)
    return outcome.result


def _made(app: Celery) -> LocationProcesses:
    from dagster_stack.broker.address import address
    from dagster_stack.settings import BROKER_VARIABLE
    from dagster_stack.worker import shared_memory, shutdown

    most = app.conf.worker_max_memory_per_child
    before = shared_memory.before_pool()
    broker = address()
    setup = {
        "pool_process": os.getpid(),
        "leaving": shutdown.descriptor(),
        "shared_memory": None if before is None else sorted(before),
        "withholds_broker": BROKER_VARIABLE not in os.environ,
    }
    environment = {**os.environ, **({BROKER_VARIABLE: broker} if broker else {})}
    return LocationProcesses(setup, environment, most * 1024 if most else None)


# --- a location's process ------------------------------------------------------------------------------------


def main(descriptor: int, pid: int) -> NoReturn:
    parent = Parent(descriptor, pid)
    setup = parent.hear()
    app = prepare(Setup(**setup)) if setup else None
    while app and (order := parent.hear()):
        parent.tell(has_begun=True)
        try:
            outcome = outcome_of(app, **order)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        parent.tell(**asdict(outcome))
        if outcome.is_over:
            break
    # Threads that are left do not keep it.
    os._exit(0)


def prepare(setup: Setup) -> Celery:
    """What a process of the pool has before its first task, with the code of one location. Returns the worker's app."""
    from dagster_stack.broker.address import withhold
    from dagster_stack.logs.service import configure
    from dagster_stack.worker import shared_memory, shutdown
    from dagster_stack.worker.descendants import adopt_orphans
    from dagster_stack.worker.warm_up import load

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure("worker")
    adopt_orphans()
    work_for(setup.pool_process)
    shutdown.share(setup.leaving)
    shared_memory.remember(setup.shared_memory)

    from dagster_stack.app import app

    if setup.withholds_broker:
        withhold()
    try:
        load(setup.location)
    except Exception:
        # A step that meets it again fails with it, where people look.
        logger.warning("this process starts cold", exc_info=True, extra={"action": "process.cold"})
    gc.freeze()
    return app


def outcome_of(app: Celery, task: str, arguments: Any, named: Any, request: Mapping[str, Any]) -> Outcome:
    """Execute a task as Celery would."""
    from dagster_stack.worker.replacement import is_to_be_replaced

    called = app.tasks[task]
    called.push_request(**request)
    try:
        found = Outcome(result=called.run(*arguments, **named))
    except Reject as reject:
        found = Outcome(rejected=str(reject.reason), is_requeued=bool(reject.requeue))
    except Exception as error:
        logger.exception("task %s failed", task, extra={"action": "task.failed"})
        found = Outcome(error=repr(error))
    finally:
        called.pop_request()
    return Outcome(**{**asdict(found), "is_over": is_to_be_replaced()})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
