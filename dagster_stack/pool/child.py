"""A child process for user code: both ends of the connection between it and this process.

It ends with this process. When it dies, this process dies of the same, so that its loss is found, told and repeated as
any other.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dagster_stack.project import PLATFORM

#: Linux: send this process a signal when its parent dies (`man 2 prctl`).
PR_SET_PDEATHSIG = 1
#: What this process says of signals that ended another, when it can't die of one itself (as shells do).
BY_SIGNAL = 128
#: Bytes that are received at once.
RECEIVED = 1 << 16


class Child:
    """The parent's end. `wait` returns the exit code of process `pid`, once it has ended."""

    def __init__(self, pid: int, told: socket.socket, wait: Callable[[], int]) -> None:
        self.pid = pid
        self._socket = told
        self._wait = wait
        self._rest = b""
        self._code: int | None = None

    @classmethod
    def started(cls, module: str) -> "Child":
        """A fresh Python with this module as its program, which begins with `Parent.of_program`."""
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        path = environment.get("PYTHONPATH", "").split(os.pathsep)
        if str(PLATFORM) not in path:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLATFORM), *path]))
        # -P: else a file of the user's with the name of a Python module would replace it.
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
                )
            except BaseException:
                ours.close()
                raise
        return cls(process.pid, ours, process.wait)

    @classmethod
    def forked(cls, program: Callable[["Parent"], object]) -> "Child":
        """A copy of this process, which executes the program and ends: it shares memory as long as nobody writes to it."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        with theirs:
            try:
                pid = os.fork()
            except BaseException:
                ours.close()
                raise
            if not pid:
                ours.close()
                _execute(program, theirs, parent)
        return cls(pid, ours, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def tell(self, **content: Any) -> None:
        """Send it a line. Only `hear` notices its death."""
        with suppress(OSError):
            self._socket.sendall(f"{json.dumps(content)}\n".encode())

    def send_signal(self, number: int) -> None:
        # Once it is reaped its number may be another's.
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def hear(self) -> Iterator[dict[str, Any]]:
        """What it says, as it comes; ends when it has died."""
        pidfd = os.pidfd_open(self.pid)
        sources: list[Any] = [self._socket, pidfd]
        try:
            while True:
                # What it has forked may keep the other end of the socket open.
                ready, _, _ = select.select(sources, [], [])
                is_gone = pidfd in ready
                self._socket.setblocking(not is_gone)
                data = self._received()
                *lines, self._rest = (self._rest + data).split(b"\n")
                yield from map(json.loads, lines)
                if is_gone and not data:
                    return
                if not data:
                    # User code has closed all descriptors.
                    sources = [pidfd]
        finally:
            self._socket.setblocking(True)
            os.close(pidfd)

    def _received(self) -> bytes:
        try:
            return self._socket.recv(RECEIVED)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        self._socket.close()
        if self._code is None:
            self._code = self._wait()
        return self._code

    def leave(self) -> None:
        """In a fork of this process: the child is not the fork's, forget it."""
        self._socket.close()

    def kill(self) -> int:
        self.send_signal(signal.SIGKILL)
        return self.wait()


def _execute(program: Callable[["Parent"], object], told: socket.socket, parent: int) -> NoReturn:
    """What a forked child does."""
    code = 1
    try:
        program(Parent(told, parent))
        code = 0
    except SystemExit as error:
        code = exit_code(error)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        # Neither what is registered for the parent's exit, nor threads that are left, keep it.
        os._exit(code)


def exit_code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def die_likewise(code: int) -> NoReturn:
    """End this process as another one did, by its exit code or, negative, its signal."""
    sys.stdout.flush()
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else BY_SIGNAL - code)


# --- the child's end ---------------------------------------------------------------------------------------


class Parent:
    """The process that has started this one: receives its lines, and sends it lines."""

    def __init__(self, told: socket.socket, pid: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != pid:
            # It has died before it could be told.
            os._exit(1)
        self._socket = told
        self._lines = self._socket.makefile("r", encoding="ascii")

    @classmethod
    def of_program(cls, descriptor: int, pid: int) -> "Parent":
        """That of a process which is a program of its own, by the program's arguments."""
        # Where a script's folder is: Dagster takes it away while it loads code.
        sys.path.insert(0, str(Path(sys.executable).parent))
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor), pid)

    def hear(self) -> dict[str, Any] | None:
        """Its next line; None when there will be none any more."""
        with suppress(OSError, ValueError):
            if line := self._lines.readline():
                content: dict[str, Any] = json.loads(line)
                return content
        return None

    def tell(self, **content: Any) -> None:
        # User code may have closed all descriptors. Without a word from here its end stands in the log all the same.
        with suppress(OSError):
            self._socket.sendall(f"{json.dumps(content)}\n".encode())
