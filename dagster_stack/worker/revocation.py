"""How a worker calls tasks back when it is told to, by Celery's remote control: Celery's `revoke`, without its backend.

Celery asks the result backend for the state of each task that the worker does not execute, in the event loop, and
stores that it was revoked. With `rpc://` that is four round trips to the broker and a warning for each, since there is
no such state: thousands of waiting steps would cost all workers their heartbeats. Nobody here reads it; a stock
task that its caller waits for is answered when a worker gets, and drops, its message. Tasks of this stack are called
back from the processes that execute them now; their ids are not held against later messages (`Request.revoked`).
"""

from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import control_command, ok


def revoke(
    state: Any, task_id: str | list[str], terminate: bool = False, signal: str | None = None, **_: Any
) -> Any:
    """Drop these tasks when they come; with `terminate`, send the signal to the processes that execute them now."""
    ids = {task_id} if isinstance(task_id, str) else set(task_id)
    worker_state.revoked.update(ids)
    found = [request for each in ids if (request := worker_state.requests.get(each))]
    if terminate:
        for request in found:
            request.terminate(state.consumer.pool, signal=signal)
    return ok(f"{len(ids)} tasks are revoked, {len(found)} of them are here")


def install() -> None:
    """Let the workers of this process answer in this way."""
    control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")(revoke)
