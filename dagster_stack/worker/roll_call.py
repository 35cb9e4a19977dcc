"""What a worker says of itself when it is asked, by Celery's remote control: its code, its queues, how busy it is."""

from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import inspect_command

from dagster_stack.broker.roll_call import ROLL_CALL
from dagster_stack.code_version import code_version


def roll_call(state: Any, **_: Any) -> dict[str, Any]:
    """Answered by the main process, which has time while all its processes work."""
    return {
        "code": code_version(),
        "queues": sorted(state.app.amqp.queues.consume_from),
        "processes": state.consumer.pool.num_processes,
        "busy": len(worker_state.active_requests),
    }


def install() -> None:
    """Let the workers of this process answer."""
    inspect_command(name=ROLL_CALL)(roll_call)
