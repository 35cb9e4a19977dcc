"""A message that a worker has taken: when it came, and what became of the process that executed it."""

import time
from functools import cache
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery import Celery
from celery.exceptions import WorkerLostError
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from dagster_stack.broker.tasks import RUN_TASK, STEP_TASK, content
from dagster_stack.logs.context import bound
from dagster_stack.worker.losses import Causes, LostProcess, tell


class Request(CeleryRequest):
    """Celery's request, which tells when its process is lost."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        #: By the monotonic clock.
        self.taken_at = time.monotonic()

    def on_failure(self, exc_info: Any, *arguments: Any, **named: Any) -> Any:
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        # What was revoked was ended on purpose, and so is everything when the worker is told to stop at once.
        wanted = self._already_revoked or self._already_cancelled or state.should_terminate
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt) and not wanted:
            self._tell(error)
        return super().on_failure(exc_info, *arguments, **named)

    def _tell(self, error: BaseException) -> None:
        if self.task.name not in {STEP_TASK, RUN_TASK}:
            return
        message = content(self.args, self.kwargs)
        if isinstance(message, dict) and isinstance(message.get("run_id"), str):
            reason = causes().of_error(error)
            work = {name: message[name] for name in ("run_id", "step_key", "attempt") if name in message}
            with bound(run=work["run_id"], step=work.get("step_key", ""), task=self.id):
                tell(LostProcess(worker=self.hostname, pid=self.worker_pid, reason=reason, **work))


@cache
def causes() -> Causes:
    """What processes of this container die of, from the worker's start on."""
    return Causes()


def install(app: Celery) -> None:
    """Let the workers of an app tell of what they lose."""
    app.Task.Request = f"{Request.__module__}:{Request.__name__}"
    causes()
