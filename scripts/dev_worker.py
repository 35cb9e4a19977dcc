"""The worker of the embedded mode: a Celery worker of this machine, with a folder as its broker."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scripts import project, project_packages
from scripts.console import LOG_FOLDER, ROOT, say

LOG = LOG_FOLDER / "dev-worker.log"
#: Seconds that the worker gets for the step it executes; above DRAIN_SECS of dagster_stack/worker/shutdown.py.
STOP_TIMEOUT_SECS = 25
#: The queues it takes steps from, when DEV_QUEUES does not name them.
QUEUES = "dagster,heavy"
#: Linux: send this process a signal when its parent dies (`man 2 prctl`).
PR_SET_PDEATHSIG = 1


class DevWorker:
    """One worker with a process for each core, started and ended with the embedded mode."""

    def __init__(self, home: Path, environment: dict[str, str], folder: Path = ROOT) -> None:
        self._folder = folder
        self._broker = home / "broker"
        self._heartbeat = home / "heartbeat"
        self._environment = {**environment, "DAGSTER_STACK_HEARTBEAT_FILE": str(self._heartbeat)}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DevWorker":
        # Old messages would start steps of runs that no process drives any more.
        shutil.rmtree(self._broker, ignore_errors=True)
        LOG.parent.mkdir(parents=True, exist_ok=True)
        LOG.unlink(missing_ok=True)
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._broker, ignore_errors=True)
        self._heartbeat.unlink(missing_ok=True)

    def revive(self) -> None:
        """Start the worker again when user code has ended it."""
        if self._process and self._process.poll() is not None:
            say(f"  ! the worker ended with code {self._process.returncode}, starting it again (log: {LOG})")
            self._start()

    def _start(self) -> None:
        with LOG.open("ab") as log:
            self._process = subprocess.Popen(
                command(),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for Dagit; this process then ends the worker in its own way.
                start_new_session=True,
            )

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_SECS)
        with suppress(ProcessLookupError):
            # It has a session of its own: whatever is left of it goes too, and nothing else.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def command() -> list[str]:
    """This module, which becomes the worker."""
    queues = os.environ.get("DEV_QUEUES") or QUEUES
    # Without the working folder on the path, where the project may have `scripts` of its own.
    python = str(project_packages.python(project.folder()))
    celery = [python, "-P", "-m", "scripts.dev_worker", "-A", "dagster_stack.app", "worker"]
    return [
        *[python, "-P", "-m", "dagster_stack.project.variables"],
        *celery,
        "-n",
        "dev@%h",
        "-Q",
        queues,
        "--concurrency",
        str(os.cpu_count() or 1),
        "--loglevel",
        "INFO",
    ]


def become_worker() -> None:
    """Become Celery, with this process's arguments; a killed `make dev` leaves no worker behind."""
    # Its arguments are unsigned longs: a plain number would leave half of each undefined.
    refused = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
    if refused:
        raise OSError(ctypes.get_errno(), "this process can't be told to end with its parent")
    os.execv(sys.executable, [sys.executable, "-P", "-m", "celery", *sys.argv[1:]])


if __name__ == "__main__":
    become_worker()
