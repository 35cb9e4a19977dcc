"""A Python that this process starts for user code, orders about and listens to: both ends of that.

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
from collections.abc import Iterator, Mapping, Sequence
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
    """The parent's end. `module` is the program: it begins with `parent_of`."""

    def __init__(
        self, module: str, inherited: Sequence[int] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._socket, theirs = socket.socketpair()
        self._rest = b""
        environment = dict(os.environ if environment is None else environment)
        path = environment.get("PYTHONPATH", "").split(os.pathsep)
        if str(PLATFORM) not in path:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLATFORM), *path]))
        # -P: a file of the user's that is called like a module of Python's would be taken for it.
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), *inherited], env=environment
                )
            except BaseException:
                self._socket.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **content: Any) -> None:
        """Send it a line; of its death `hear` tells."""
        with suppress(OSError):
            self._socket.sendall(f"{json.dumps(content)}\n".encode())

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

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
        return self._process.wait()

    def kill(self) -> int:
        self._process.kill()
        return self.wait()


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
    """Whoever has started this process: what it says, and what it is told."""

    def __init__(self, descriptor: int, pid: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != pid:
            # It has died before it could be told.
            os._exit(1)
        # Where a script's folder is: Dagster takes it away while it loads code.
        sys.path.insert(0, str(Path(sys.executable).parent))
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._lines = self._socket.makefile("r", encoding="ascii")

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
