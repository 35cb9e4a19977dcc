"""What a forked child of this process must not do: use what its parent has open, or go on as its parent.

Each owner of something that a fork breaks registers what its child does about it (`os.register_at_fork`); here is what
several of them need.
"""

import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn, Protocol
from weakref import WeakSet

#: Packages whose signal handlers are about this process's work, of which a child knows nothing.
HANDLERS_OF = {"billiard", "celery", "dagster", "dagster_stack"}


#: Processes that the platform itself has started from this one: they are no step's.
own_children: set[int] = set()


class Socket(Protocol):
    def fileno(self) -> int: ...


_sockets: WeakSet[Socket] = WeakSet()


def keep_from_children(socket: Socket) -> None:
    """Let a child's copy of this connection lead nowhere, so that no finalizer of any library sends anything on it."""
    _sockets.add(socket)


def _cut_off() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for each in list(_sockets):
        # One that is closed has no descriptor; each library says so in its own way.
        with suppress(Exception):
            os.dup2(null, each.fileno(), inheritable=False)
    _sockets.clear()
    os.close(null)


#: The signals that each thread which forks had blocked before.
_masks = threading.local()


def _hold_signals() -> None:
    """Hold signals back until a child has handlers of its own: those that it inherits are about its parent's work."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _default_signals() -> None:
    """A handler that asks the parent's step to end would let no Pool end its processes. User code's own stay."""
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and str(getattr(handler, "__module__", "")).partition(".")[0] in HANDLERS_OF:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def leave() -> NoReturn:
    """End this child, whose user code has returned, or raised what is being handled: the rest is its parent's."""
    error = sys.exc_info()[1]
    # Dagster has put what user code raised into an error of its own.
    error = getattr(error, "user_exception", None) or error
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
    with suppress(BaseException):
        if error is not None and (code == 1 or not isinstance(error, SystemExit)):
            print(f"A forked child of the step (process {os.getpid()}) ended by an error:", file=sys.stderr)
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    # Neither what ends the parent's step, nor what is registered for the parent's exit.
    os._exit(code)


os.register_at_fork(after_in_child=_cut_off)
os.register_at_fork(after_in_child=_default_signals)
os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_release_signals)
