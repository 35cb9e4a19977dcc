"""A worker that is told to rest takes nothing more: what it has it ends, and then it may go without a loss.

Celery's own `cancel_consumer` is no help: the worker would subscribe again by itself (subscription.py). A rest ends with its
time, unless it is renewed. So a worker does not rest for ever when whoever told it is gone.
"""

import time
from typing import Any

from celery.worker.control import control_command

from dagster_stack.messaging.workers import REST

#: On the monotonic clock: until when this worker rests.
_until = 0.0


def rest(state: Any, seconds: float, **_: Any) -> dict[str, Any]:
    """From now on, for so many seconds; with 0 it takes work again. It has rested since a roll call says so."""
    global _until  # noqa: PLW0603
    _until = time.monotonic() + float(seconds)
    return {"ok": f"rests for {seconds} s"}


def seconds_left() -> float:
    """How long this worker is still to rest; 0 when it is not."""
    return max(0.0, _until - time.monotonic())


def install() -> None:
    """Let the workers of this process be told."""
    control_command(name=REST, args=[("seconds", float)])(rest)
