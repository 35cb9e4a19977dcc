"""The process that loads the user's code for Dagit and for the daemon: Dagster's own, with the log of its service.

It is a fork of a process that has the platform alone, so that each code location costs what its own code takes, in memory
as in time.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from multiprocessing.context import ForkServerProcess
from threading import Lock
from typing import Any

from dagster_stack.logs.libraries import leave_to_service, use_in_dagster
from dagster_stack.logs.service import SERVICE_VARIABLE, active, configure
from dagster_stack.patches.dagster import CODE_SERVER_COMMAND, CODE_SERVER_START
from dagster_stack.patches.python import allow_children
from dagster_stack.project import found, use

#: Linux: what `ps` and `top` call this process (`man 2 prctl`).
PR_SET_NAME, NAME = 15, b"code-server"


class CodeServer:
    """A fork, as Dagster looks at a `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: str | None) -> None:
        self.args = words
        self._lock = Lock()
        # A daemon of multiprocessing's: it is not waited for when this process ends.
        self._process = ForkServerProcess(target=serve, args=(words, dict(environment), folder), daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        # Several threads ask, and what tells the answer says it once.
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; raises TimeoutExpired."""
        with self._lock:
            self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


#: Those that this process has started, and not seen the end of.
_started: list[CodeServer] = []


def pids() -> list[int]:
    """The ids of this process's code servers; some may have ended."""
    return [each.pid for each in _started]


def use_in_code_servers() -> None:
    """Let the code servers that this process starts be this module."""
    if log := active():
        os.environ[SERVICE_VARIABLE] = log.service
    CODE_SERVER_COMMAND.replace(entry_point)
    CODE_SERVER_START.replace(start)


def entry_point(executable: str) -> Sequence[str]:
    """In the place of Dagster's own: how a Python is called with the words of Dagster's command line."""
    # Another Python, of a code location that names one, may not have this module.
    return [executable, "-m", __name__ if executable == sys.executable else "dagster"]


def start(words: Sequence[str], **options: Any) -> Any:
    """In the place of Dagster's own: the process of such a call."""
    own = entry_point(sys.executable)
    if list(words[: len(own)]) != own:
        return subprocess.Popen(words, **options)
    server = CodeServer(words[len(own) :], options.get("env") or os.environ, options.get("cwd"))
    _started[:] = [*(each for each in _started if each.poll() is None), server]
    return server


def serve(words: Sequence[str], environment: Mapping[str, str], folder: str | None) -> None:
    """What a fork does, in the place of a program with this command line."""
    os.environ.clear()
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
    sys.argv = [__name__, *words]
    ctypes.CDLL(None).prctl(PR_SET_NAME, NAME)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # User code of sensors and schedules may start processes.
    allow_children()
    main()


def use_location(words: Sequence[str]) -> None:
    """Let this process import what its code location may: functions import when Dagster has long loaded it."""
    for name, following in pairwise(words):
        if name == "--location-name":
            use(entry for each in found().locations if each.name == following for entry in each.path)


def main() -> None:
    """Run Dagster's command line with the arguments of this process."""
    from dagster._cli import api
    from dagster._cli import main as command_line

    from dagster_stack.messaging.address import withhold
    from dagster_stack.project import read_only

    configure("code-server")
    use_location(sys.argv)
    use_in_dagster()
    read_only.use_in_dagster()
    withhold()
    leave_to_service(api)
    command_line()


if __name__ == "__main__":
    main()
