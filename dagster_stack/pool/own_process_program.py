"""What a step's own process executes: the step, for the process of the pool that has its message."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

from dagster_stack.pool.child import Parent, exit_code
from dagster_stack.pool.own_process import Ended


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

    from dagster_stack.logs.context import bound
    from dagster_stack.logs.service import configure
    from dagster_stack.messaging.messages import StepMessage
    from dagster_stack.step.descendants import adopt_orphans
    from dagster_stack.step.step_execution import StepExecution
    from dagster_stack.store.leases import Lease
    from dagster_stack.store.sqlstate import is_away
    from dagster_stack.worker.warm_up import load

    configure("worker")
    adopt_orphans()
    message = StepMessage.from_json(order["message"])
    lease = Lease(message.work, order["epoch"], order["holder"]) if order["epoch"] else None
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
            execution.execute_leased(lease)
        except Exception as caught:
            error = caught
    if error is None:
        return Ended(None, "", execution.was_interrupted)
    known = "GivenUp" if is_away(error) else type(error).__name__
    return Ended(known, str(error), execution.was_interrupted)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
