"""In a project of several code locations: a process for each of them behind each process of the pool.

The pool's process loads no user code. It hands what it gets to the process of its location, which does all that the
pool's does in a project of one, and stays warm. It is a fork, so that all of them share the platform. Which of them stay,
memory says: those that were used last.
"""

import gc
import logging
import os
import signal
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject, SoftTimeLimitExceeded

from dagster_stack.errors import StackError
from dagster_stack.patches.celery import leave_connections_to_parent
from dagster_stack.pool.child import Child, Parent, die_likewise
from dagster_stack.pool.warm import work_for, works_for_another
from dagster_stack.project.locations import location_of_message, several

logger = logging.getLogger(__name__)

#: What a task may ask of its request.
REQUEST = ("id", "hostname", "delivery_info", "timelimit", "shadow", "reply_to", "correlation_id")


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
    """The location processes of one pool process. Together they have no more memory than a pool process may have."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        most = app.conf.worker_max_memory_per_child
        self._most_bytes = most * 1024 if most else None
        #: By location, the one that was used last at the end.
        self._kept: OrderedDict[str, Child] = OrderedDict()

    def execute(self, location: str, order: Mapping[str, Any]) -> Outcome:
        """Let the location's process execute a task. Does not return when that process dies of it."""
        child = self._kept.get(location)
        if child and (outcome := self._try(location, child, order)):
            return self._after(location, outcome)
        # None so far, or one that had died before it got this.
        self._end(location)
        child = self._kept[location] = Child.forked(partial(serve, self._app, location))
        if outcome := self._try(location, child, order):
            return self._after(location, outcome)
        die_likewise(child.wait())

    def _try(self, location: str, child: Child, order: Mapping[str, Any]) -> Outcome | None:
        """None: it died without having begun."""
        has_begun = False
        try:
            with interrupts_for(child):
                child.tell(**order)
                for heard in child.hear():
                    if "has_begun" not in heard:
                        return Outcome(**heard)
                    has_begun = True
        except BaseException:
            # It may still do work whose caller has given up, as after Celery's soft time limit.
            self._end(location)
            raise
        if has_begun:
            die_likewise(child.wait())
        return None

    def _after(self, location: str, outcome: Outcome) -> Outcome:
        self._kept.move_to_end(location)
        if outcome.is_over:
            self._end(location)
        while self._most_bytes and has_more([each.pid for each in self._kept.values()], self._most_bytes):
            self._end(next(iter(self._kept)))
        return outcome

    def leave(self) -> None:
        """In a fork: they are its parent's."""
        for child in self._kept.values():
            child.leave()

    def _end(self, location: str) -> None:
        if child := self._kept.pop(location, None):
            child.kill()


def has_more(pids: Sequence[int], most_bytes: int) -> bool:
    """Whether the processes together have more than so many bytes of memory of their own."""
    import psutil

    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    # What they share with the process that they are forked from counts here; to leave that out takes milliseconds.
    if sum(each.memory_info().rss for each in processes) <= most_bytes:
        return False
    return sum(each.memory_full_info().uss for each in processes) > most_bytes


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
    from dagster_stack.pool.delivery import back_to_queue_on_error

    if _Process.locations is None:
        _Process.locations = LocationProcesses(task.app)
    request = {name: getattr(task.request, name, None) for name in REQUEST}
    order = {"task": task.name, "arguments": arguments, "named": named, "request": request}
    try:
        outcome = _Process.locations.execute(location_of_message([arguments, named]), order)
    except SoftTimeLimitExceeded:
        # Celery's, for tasks of dagster-celery: they end by it.
        raise
    except Exception:
        with back_to_queue_on_error():
            raise
    if outcome.rejected is not None:
        raise Reject(outcome.rejected, requeue=outcome.is_requeued)
    if outcome.error is not None:
        raise StackError(outcome.error)
    return outcome.result


# --- a location's process ------------------------------------------------------------------------------------


def serve(app: Celery, location: str, parent: Parent) -> None:
    """Do what this fork of a pool's process is told to, until there is nothing more."""
    from dagster_stack.step.descendants import adopt_orphans
    from dagster_stack.worker.warm_up import load

    if _Process.locations:
        _Process.locations.leave()
    # Its connections to the broker are its parent's too.
    leave_connections_to_parent(app)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work_for(os.getppid())
    adopt_orphans()
    try:
        load(location)
    except Exception:
        # A step that meets it again fails with it, where people look.
        logger.warning("this process starts cold", exc_info=True, extra={"action": "process.cold"})
    gc.freeze()
    while order := parent.hear():
        parent.tell(has_begun=True)
        outcome = outcome_of(app, **order)
        parent.tell(**asdict(outcome))
        if outcome.is_over:
            break


def outcome_of(app: Celery, task: str, arguments: Any, named: Any, request: Mapping[str, Any]) -> Outcome:
    """Execute a task as Celery would."""
    from dagster_stack.pool.replacement import is_to_be_replaced

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
