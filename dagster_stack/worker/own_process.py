"""A step in a process of its own: a fresh Python, started for it, which ends with it.

The pool's process has the step's message and its claim. It starts the own process and waits; meanwhile it forwards
interrupts, gives signs of life and wakes the run. It dies of what the own process dies of, so that a loss is found, told
and repeated as any other. When it ends the own process ends too. As a program, this module executes the step.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dagster_stack import errors
from dagster_stack.errors import StackError
from dagster_stack.worker.child import Child, Parent, die_likewise, exit_code

if TYPE_CHECKING:
    from dagster_stack.broker.messages import StepMessage


@dataclass(frozen=True)
class Ended:
    """How a step's own process told that it was done."""

    #: The name of a class in `errors`, or any other's; None: all went well.
    error: str | None
    text: str
    was_interrupted: bool


@dataclass(frozen=True)
class Order:
    """What such a process is to do, and for whom; without an epoch there is no claim."""

    message: "StepMessage"
    holder: str
    epoch: int | None
    celery_limits: Sequence[float | None] | None


def execute_apart(order: Order, ended: Callable[[], None], woken: Callable[[], None]) -> bool:
    """Execute a claimed step in a process of its own; returns whether it was interrupted, raises what it raised.

    `ended` is called when its end stands in the log, `woken` when its run is to look. Does not return when it dies.
    """
    with _interrupts() as forward_to:
        child = Child.started(__name__)
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


# --- the step's own process -----------------------------------------------------------------------------------------


def main(descriptor: int, pid: int) -> NoReturn:
    parent = Parent.of_program(descriptor, pid)
    early: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: early.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    order = parent.hear()
    if order is None:
        os._exit(1)
    try:
        end = _execute(order, early, parent.tell)
    except SystemExit as error:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code(error))
    parent.tell(**asdict(end))
    # Threads that are left do not keep it.
    os._exit(0)


def _execute(order: dict[str, Any], early: list[int], tell: Callable[..., None]) -> Ended:
    from dagster._utils.interrupts import capture_interrupts

    from dagster_stack.broker.messages import StepMessage
    from dagster_stack.logs.context import bound
    from dagster_stack.logs.service import configure
    from dagster_stack.storage.claims import Claim
    from dagster_stack.storage.sqlstate import is_away
    from dagster_stack.worker.descendants import adopt_orphans
    from dagster_stack.worker.step_execution import StepExecution
    from dagster_stack.worker.warm_up import load

    configure("worker")
    adopt_orphans()
    message = StepMessage.from_json(order["message"])
    claim = Claim(message.work, order["epoch"], order["holder"]) if order["epoch"] else None
    execution = StepExecution(
        message,
        order["holder"],
        wake_run=lambda: tell(has_ended=execution.has_ended),
        celery_limits=order["celery_limits"],
        is_in_own_process=True,
    )
    error: BaseException | None = None
    with bound(run=message.run_id, step=message.step_key, task=message.task_id), capture_interrupts():
        if early:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            load(message.location)
            execution.execute_claimed(claim)
        except Exception as caught:
            error = caught
    if error is None:
        return Ended(None, "", execution.was_interrupted)
    known = "GivenUp" if is_away(error) else type(error).__name__
    return Ended(known, str(error), execution.was_interrupted)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
