"""A message that a worker has taken: when it came, how it is called back, and how its process ended."""

import os
import signal as signals
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery import Celery
from celery import signals as celery_signals
from celery.exceptions import WorkerLostError
from celery.platforms import signals as signal_names
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from dagster_stack.logs.context import bound
from dagster_stack.messaging.task_names import RUN_TASK, STEP_TASK
from dagster_stack.worker.lost_processes import DeathCauses, LostProcess, is_wanted, report_lost

#: Called when a message that the worker had taken is answered.
settled: set[Callable[[], None]] = set()

#: Tasks that Celery's time limits don't apply to: those of dagster-celery's launcher drive runs too.
WITHOUT_LIMIT = {STEP_TASK, RUN_TASK, "execute_job", "resume_job"}


class Request(CeleryRequest):
    """Celery's request, which tells when its process is lost, and stays until what was interrupted has ended."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self._is_of_stack:
            # A step's process keeps the limits of its step itself; a run has none.
            self.time_limits = (None, None)
        #: By the monotonic clock.
        self.taken_at = time.monotonic()
        self._is_interrupted = False

    def revoked(self) -> bool:
        """Whether its id was called back. One of this stack's is not: another execution of the same attempt has the
        same id, and what waits of a run that has ended is skipped by what the event log says."""
        return not self._is_of_stack and bool(super().revoked())

    @property
    def _is_of_stack(self) -> bool:
        return self.type in {STEP_TASK, RUN_TASK}

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Send a signal to the process. An interrupt asks it to end: how it does is for its task to say.

        Celery would forget the task and acknowledge its message, for any signal: one that went on could not be killed
        any more, the next message would wait behind it, and a later death of that process would count as wanted.
        """
        if self._is_of_stack and not self.time_start:
            return
        if self.time_start and signal and signal_names.signum(signal) == signals.SIGINT:
            self._is_interrupted = True
            with suppress(ProcessLookupError):
                os.kill(self.worker_pid, signals.SIGINT)
        else:
            super().terminate(pool, signal)

    def acknowledge(self) -> None:
        super().acknowledge()
        _tell_settled()

    def reject(self, requeue: bool = False) -> None:
        super().reject(requeue=requeue)
        _tell_settled()

    def on_failure(self, exc_info: Any, *arguments: Any, **named: Any) -> Any:
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        # What was revoked was ended on purpose, and so is everything when the worker is told to stop at once.
        wanted = (
            self._is_interrupted
            or self._already_revoked
            or self._already_cancelled
            or state.should_terminate
            or is_wanted(error)
        )
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt) and not wanted:
            self._tell(error)
        return super().on_failure(exc_info, *arguments, **named)

    def _tell(self, error: BaseException) -> None:
        if not self._is_of_stack:
            return
        message = content(self.args, self.kwargs)
        if isinstance(message, dict) and isinstance(message.get("run_id"), str):
            reason = causes().of_error(error)
            work = {name: message[name] for name in ("run_id", "step_key", "attempt") if name in message}
            with bound(run=work["run_id"], step=work.get("step_key", ""), task=self.id):
                report_lost(LostProcess(worker=self.hostname, pid=self.worker_pid, reason=reason, **work))


def _tell_settled() -> None:
    for tell in tuple(settled):
        tell()


def lift_limits(instance: Any, **_: Any) -> None:
    """Celery's time limits end a process and acknowledge its message: they are for other tasks than runs and steps."""
    # The pool's would be every task's; Celery gives tasks their own from the same settings.
    instance.pool.options.update(timeout=None, soft_timeout=None)
    for name in WITHOUT_LIMIT:
        task = instance.app.tasks[name]
        task.time_limit = task.soft_time_limit = None


@cache
def causes() -> DeathCauses:
    """The deaths of this container's processes, from the worker's start on."""
    return DeathCauses()


def install(app: Celery) -> None:
    """Let the workers of an app tell of what they lose."""
    app.Task.Request = f"{Request.__module__}:{Request.__name__}"
    # A weak reference would be gone with the caller's frame.
    celery_signals.celeryd_after_setup.connect(lift_limits, weak=False)
    causes()


def content(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The message of a task: its one argument. Anything else as it came, to be read in the refusal."""
    return kwargs["message"] if not args and set(kwargs) == {"message"} else {"args": args, "kwargs": kwargs}
