"""Finds all processes that a step has started, and ends them before anything else is executed.

A pool's process and its worker's main process are subreapers (prctl(2)): a process whose parent ends becomes the child
of the nearest of them, so that nobody gets away by forking twice or by a session of its own. A control group for each
step would do the same, but a container may not make any, unless it is given the right to its host's.
"""

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Any

from dagster_stack.forks import own_children
from dagster_stack.patches import python

if TYPE_CHECKING:
    from psutil import Process

logger = logging.getLogger(__name__)

SET_CHILD_SUBREAPER = 36
#: Seconds that a process gets to end after it was asked to; then it is killed.
ASKED_SECS = 1.0
#: Seconds that Python's trackers get to remove what a killed process kept in named shared memory.
TRACKERS_SECS = 4.0
#: Seconds after which killed processes are not waited for any more: a call of the kernel keeps them.
KILLED_SECS = 8.0
#: Seconds for what multiprocessing does at a program's end: pools, managers and queues end their processes.
FINALIZERS_SECS = 2.0
LOOK_SECS = 0.005
#: Characters of a command that are told: from its beginning, and from its end.
HEAD, TAIL = 80, 40
#: Processes by which Python removes what others leave in shared memory: they end by themselves after all others.
TRACKER = "resource_tracker import main"
#: These, and others by which libraries start processes: users do not know them, so no run's log names them.
HELPERS = (TRACKER, "multiprocessing.forkserver import main", "loky.backend")


def adopt_orphans() -> None:
    """Let descendants of this process whose parents end become its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        logger.warning(
            "processes that a step leaves behind may not be found: %s",
            os.strerror(ctypes.get_errno()),
            extra={"action": "process.no_subreaper"},
        )


def has_children() -> bool:
    """Whether this process has any, ended ones included: a microsecond, before each look that costs more."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class Descendants:
    """What this process starts while the context lasts; ended with it, unless it was ended before."""

    def __init__(self) -> None:
        #: What ran before the context's begin; None: it has not begun, and nothing here is its own.
        self._kept: set[Process] | None = None
        self._finalizers: set[Any] = set()
        #: Helpers of multiprocessing's that user code started before, as they were: a step has helpers of its own, with
        #: which its shared memory and its processes go.
        self._aside: list[tuple[Any, dict[str, Any]]] = []
        #: Processes that had to be ended, for people.
        self.told: list[str] = []

    def __enter__(self) -> "Descendants":
        self._kept = set(children()) if has_children() else set()
        self._finalizers = set(python.finalizers())
        self._aside = [(each, state) for each, state in python.helpers() if set(state.values()) != {None}]
        for helper, state in self._aside:
            vars(helper).update(dict.fromkeys(state))
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Return when all processes that were started since the context's begin are gone."""
        if self._kept is None:
            return
        if has_children():
            with default_sigchld():
                self._finalize()
                self.told += end(self._found, ASKED_SECS)
            python.forget_helpers({each.pid for each in self._kept})
        for helper, state in self._aside:
            vars(helper).update(state)
        self._aside = []
        # Its folder for sockets is among the step's temporary files.
        python.config().pop("tempdir", None)

    def kill(self) -> None:
        """The same at once, for a process that is about to end."""
        if self._kept is not None and has_children():
            end(self._found, 0)

    def _found(self) -> "list[Process]":
        kept = self._kept or set()
        return descendants(each for each in children() if each not in kept and each.pid not in own_children)

    def _finalize(self) -> None:
        """What multiprocessing does at a program's end: a pool that goes on would replace each process of its own."""
        registry = python.finalizers()
        new = [key for key in registry if key not in self._finalizers and key[0] is not None]

        def run() -> None:
            for key in sorted(new, reverse=True):
                with suppress(Exception):
                    finalizer = registry.get(key)
                    if finalizer:
                        finalizer()

        if new:
            # In a thread: one that waits for a stuck process goes on when that is killed below.
            thread = Thread(target=run, name="end-of-multiprocessing", daemon=True)
            thread.start()
            thread.join(FINALIZERS_SECS)


def end_orphans(kept: Collection[int]) -> list[str]:
    """End the children of this process, and theirs, but for those with these ids and the platform's own: what a process
    of the pool that is gone has left. They are killed at once. Returns what they were."""
    if not has_children():
        return []
    with _starting:
        spared = {*kept, *own_children}
        return end(lambda: descendants(each for each in children() if each.pid not in spared), 0)


_starting = Lock()


@contextmanager
def own_child(start: Callable[[], Any]) -> Iterator[Any]:
    """A process (an object with `pid`) that the platform itself starts in a worker's main process: no orphan."""
    with _starting:
        process = start()
        own_children.add(process.pid)
    try:
        yield process
    finally:
        own_children.discard(process.pid)


# --- how they are found and ended ------------------------------------------------------------------------


def children() -> "list[Process]":
    import psutil

    return psutil.Process().children()


def descendants(roots: "Iterable[Process]") -> "list[Process]":
    import psutil

    found = []
    for root in roots:
        found.append(root)
        with suppress(psutil.NoSuchProcess):
            found += root.children(recursive=True)
    return found


def end(find: "Callable[[], list[Process]]", asked_secs: float) -> list[str]:
    """End what `find` finds until it finds nothing: SIGTERM first, then SIGKILL; trackers of memory last."""
    told: dict[Process, str] = {}
    began = time.monotonic()
    asked: set[Process] = set()
    killed_at = began + asked_secs
    while found := alive(find()):
        now = time.monotonic()
        others = [each for each in found if not is_tracker(each)]
        for each in others:
            if not is_ending(each):
                told.setdefault(each, name(each))
        if now > killed_at + KILLED_SECS:
            logger.error(
                "processes that were killed are still there: %s",
                ", ".join(map(name, found)),
                extra={"action": "process.not_ended"},
            )
            break
        if not others:
            # Each ends when nobody is left who could use what it tracks: this process too must let go of it.
            python.let_go_of_trackers()
        for each in others or (found if now > killed_at + TRACKERS_SECS else []):
            if now >= killed_at:
                send(each, signal.SIGKILL)
            elif each not in asked:
                asked.add(each)
                send(each, signal.SIGTERM)
        time.sleep(LOOK_SECS)
    return [text for text in told.values() if not any(helper in text for helper in HELPERS)]


def alive(processes: "list[Process]") -> "list[Process]":
    """Those that have not ended; children of this process among the others are reaped."""
    import psutil

    # multiprocessing's objects first learn how their processes ended: the kernel says it only once.
    if (module := sys.modules.get("multiprocessing")) and processes:
        module.active_children()
    found = []
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
                continue
        with suppress(ChildProcessError):
            os.waitpid(each.pid, os.WNOHANG)
    return found


def send(process: "Process", number: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(number)


def name(process: "Process") -> str:
    import psutil

    try:
        command = " ".join(" ".join(process.cmdline()).split()) or process.name()
    except psutil.Error:
        command = "?"
    if len(command) > HEAD + TAIL:
        # The program, and what it works on.
        command = f"{command[:HEAD]} … {command[-TAIL:]}"
    return f"{process.pid} ({command})"


def is_tracker(process: "Process") -> bool:
    import psutil

    with suppress(psutil.Error):
        return TRACKER in " ".join(process.cmdline())
    return False


def is_ending(process: "Process") -> bool:
    """Whether a process has let go of its memory, its command with that: it is gone in a moment, whoever asks it."""
    import psutil

    with suppress(psutil.Error):
        return not process.cmdline()
    return True


@contextmanager
def default_sigchld() -> Iterator[None]:
    """PyTorch's handler raises an error for each process of a data loader that is killed."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGCHLD) is None:
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
