"""A step in a process of its own: a fresh Python, started for it, which ends with it.

The pool's process has the step's message and its claim. It starts the own process and waits; meanwhile it forwards
interrupts, gives signs of life and wakes the run. It dies of what the own process dies of, so that a loss is found, told
and repeated as any other. When it ends the own process ends too. As a program, this module executes the step.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dagster_stack import errors
from dagster_stack.errors import StackError

if TYPE_CHECKING:
    from dagster_stack.broker.messages import StepMessage

#: Linux: send this process a signal when its parent dies (`man 2 prctl`).
PR_SET_PDEATHSIG = 1
#: What the parent says of signals that ended a process, when it can't die of one itself (as shells do).
BY_SIGNAL = 128
#: Bytes that are received at once.
RECEIVED = 1 << 16

Process = subprocess.Popen[bytes]


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
    text = json.dumps({**vars(order), "message": order.message.to_json()})
    ours, theirs = socket.socketpair()
    with ours, _interrupts() as forward_to:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        try:
            forward_to(process)
            # Of its death the code tells more.
            with suppress(OSError):
                ours.sendall(f"{text}\n".encode())
            end = _listen(process, ours, ended, woken)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
    if end is None:
        die_likewise(code)
    if end.error:
        raise getattr(errors, end.error, StackError)(end.text)
    return end.was_interrupted


@contextmanager
def _interrupts() -> Iterator[Callable[[Process], None]]:
    """Keep the interrupts that come, for the process that is started within and told by a call; it gets later ones too."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    early: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: early.append(number))
    # The process inherits that, and takes none before it can notice it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def forward_to(process: Process) -> None:
        signal.signal(signal.SIGINT, lambda number, _: process.send_signal(number))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if early:
            process.send_signal(signal.SIGINT)

    try:
        yield forward_to
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


def _listen(
    process: Process,
    told: socket.socket,
    ended: Callable[[], None],
    woken: Callable[[], None],
) -> Ended | None:
    """What the process tells until it is done; None when it died."""
    pidfd = os.pidfd_open(process.pid)
    sources: list[Any] = [told, pidfd]
    rest = b""
    try:
        while True:
            # What it has forked may keep the other end of the socket open.
            ready, _, _ = select.select(sources, [], [])
            is_gone = pidfd in ready
            told.setblocking(not is_gone)
            data = _received(told)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                content = json.loads(line)
                if "was_interrupted" in content:
                    return Ended(**content)
                if content["has_ended"]:
                    ended()
                woken()
            if is_gone and not data:
                return None
            if not data:
                # The step has closed all descriptors.
                sources = [pidfd]
    finally:
        os.close(pidfd)


def _received(told: socket.socket) -> bytes:
    try:
        return told.recv(RECEIVED)
    except (BlockingIOError, ConnectionResetError):
        return b""


def die_likewise(code: int) -> NoReturn:
    """End this process as another one did, by its exit code or, negative, its signal."""
    sys.stdout.flush()
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else BY_SIGNAL - code)


# --- the step's own process -----------------------------------------------------------------------------------------


def main(descriptor: int, parent: int) -> NoReturn:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        # It has died before it could be told.
        os._exit(1)
    early: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: early.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.set_inheritable(descriptor, False)
    told = socket.socket(fileno=descriptor)
    with told.makefile("r") as lines:
        order = json.loads(lines.readline())

    def tell(**content: Any) -> None:
        # The step may have closed all descriptors. Without a word from here its end stands in the log all the same.
        with suppress(OSError):
            told.sendall(f"{json.dumps(content)}\n".encode())

    try:
        end = _execute(order, early, tell)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    tell(**asdict(end))
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
            load()
            execution.execute_claimed(claim)
        except Exception as caught:
            error = caught
    if error is None:
        return Ended(None, "", execution.was_interrupted)
    known = "GivenUp" if is_away(error) else type(error).__name__
    return Ended(known, str(error), execution.was_interrupted)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
