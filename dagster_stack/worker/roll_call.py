"""A worker's answer about itself, by Celery's remote control: its code, its queues, its tasks."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import inspect_command

from dagster_stack.code_version import code_version
from dagster_stack.messaging.workers import HOST_VARIABLE, ROLL_CALL
from dagster_stack.worker import respite
from dagster_stack.worker.subscription import held


def roll_call(state: Any, **_: Any) -> dict[str, Any]:
    """Answered by the main process, which is free even while all pool processes work."""
    active = list(worker_state.active_requests)
    return {
        "code": code_version(),
        "host": os.environ.get(HOST_VARIABLE, ""),
        "queues": sorted(state.app.amqp.queues.consume_from),
        "processes": state.consumer.pool.num_processes,
        "busy": len(active),
        "held": held(state.consumer),
        "rests": round(rests(state.consumer), 1),
        "uptime": round((datetime.now(UTC) - state.consumer.controller.startup_time).total_seconds()),
        # Celery counts a task when it begins.
        "done": max(0, sum(worker_state.total_count.values()) - len(active)),
        "doing": [activity(each.type, each.args, each.kwargs) for each in active],
    }


def rests(consumer: Any) -> float:
    """For how many seconds it is certain that the worker gets nothing; 0 while a message may be on its way."""
    subscription = consumer.subscription
    return respite.seconds_left() if subscription and subscription.is_at_rest else 0.0


def activity(task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str | None]:
    """A task with its run and its step, as far as its arguments tell them: a message, or what dagster-celery packs."""
    found: Mapping[str, Any] = next(
        (each for each in (*kwargs.values(), *args) if isinstance(each, Mapping)), {}
    )
    # Dagster's serializer still writes the field's name of old, and wraps sequences.
    run_id = found.get("run_id") or found.get("pipeline_run_id")
    steps = found.get("step_key") or found.get("step_keys_to_execute") or []
    if isinstance(steps, Mapping):
        steps = steps.get("__seq__") or steps.get("__set__") or []
    step = steps if isinstance(steps, str) else ", ".join(map(str, steps))
    return {"task": task, "run_id": run_id if isinstance(run_id, str) else None, "step": step or None}


def install() -> None:
    """Let the workers of this process answer."""
    inspect_command(name=ROLL_CALL)(roll_call)
