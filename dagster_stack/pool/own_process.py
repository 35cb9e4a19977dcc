"""A step in a process of its own: a fresh Python, started for it, which ends with it.

The pool's process has the step's message and its lease. It starts the own process and waits; meanwhile it forwards
interrupts, gives signs of life and wakes the run. It dies of what the own process dies of, so that a loss is found, told
and repeated as any other. When it ends the own process ends too. As a program, this module executes the step.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster_stack import errors
from dagster_stack.errors import StackError
from dagster_stack.pool.child import Child, die_likewise

if TYPE_CHECKING:
    from dagster_stack.messaging.messages import StepMessage

#: The module that the own process executes.
PROGRAM = "dagster_stack.pool.own_process_program"


@dataclass(frozen=True)
class Ended:
    """The last line of a step's own process: how it ended."""

    #: The name of a class in `errors`, or any other's; None: all went well.
    error: str | None
    text: str
    was_interrupted: bool


@dataclass(frozen=True)
class Order:
    """What such a process is to execute, and for which holder; without an epoch there is no lease."""

    message: "StepMessage"
    holder: str
    epoch: int | None
    celery_limits: Sequence[float | None] | None


def execute_apart(order: Order, ended: Callable[[], None], woken: Callable[[], None]) -> bool:
    """Execute a leased step in a process of its own; returns whether it was interrupted, raises what it raised.

    `ended` is called when its end stands in the log, `woken` when its run is to look. Does not return when it dies.
    """
    with _interrupts() as forward_to:
        child = Child.started(PROGRAM)
        try:
            forward_to(child)
            child.tell(**{**vars(order), "message": order.message.to_json()})
            end = _listen(child, ended, woken)
        except BaseException:
            child.kill()
            raise
        code = child.wait()
    if end is None:
        die_likewise(code)
    if end.error:
        raise getattr(errors, end.error, StackError)(end.text)
    return end.was_interrupted


@contextmanager
def _interrupts() -> Iterator[Callable[[Child], None]]:
    """Keep the interrupts that come, for the process that is started within and told by a call; it gets later ones too."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    early: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: early.append(number))
    # The process inherits that, and takes none before it can notice it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def forward_to(child: Child) -> None:
        signal.signal(signal.SIGINT, lambda number, _: child.send_signal(number))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if early:
            child.send_signal(signal.SIGINT)

    try:
        yield forward_to
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


def _listen(child: Child, ended: Callable[[], None], woken: Callable[[], None]) -> Ended | None:
    """What the process tells until it is done; None when it died."""
    for heard in child.hear():
        if "was_interrupted" in heard:
            return Ended(**heard)
        if heard["has_ended"]:
            ended()
        woken()
    return None
