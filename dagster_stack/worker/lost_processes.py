"""A process of a worker's pool that died with its task: finds the reason, and tells the database and the run's log.

The worker's main process sees it, which does without Dagster. So it starts a process that tells, and goes on. As a
program, this module tells of the loss that it is given.
"""

import json
import logging
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGRTMAX, Signals
from threading import Lock, Thread

from dagster_stack.errors import UsageError
from dagster_stack.logs.context import bound, in_context
from dagster_stack.logs.service import configure
from dagster_stack.step import shared_memory
from dagster_stack.step.descendants import own_child
from dagster_stack.timing import TELL_SECS
from dagster_stack.worker.memory import CGROUPS, Memory

logger = logging.getLogger(__name__)

#: The exit code of a process that ended its own step on purpose: no loss.
ENDED_ITSELF = 113
#: The signal by which the kernel ends a process whose step takes longer than its limit, and what that is called.
LIMIT_SIGNAL = SIGRTMAX - 1
KILLED_AT_LIMIT = "killed at its step's time limit"
#: What billiard's WorkerLostError says of the process: its exit code, or the signal that ended it.
STATUS = re.compile(r"(signal|exitcode) (\d+)")


@dataclass(frozen=True)
class LostProcess:
    """A process that died while it executed a step, or with an empty key while it drove a run."""

    worker: str
    pid: int
    reason: str
    run_id: str
    step_key: str = ""
    attempt: int = 0

    @property
    def holder(self) -> str:
        """Its name in leases."""
        return f"{self.worker} (process {self.pid})"

    def __str__(self) -> str:
        work = f'executed step "{self.step_key}"' if self.step_key else "drove this run"
        return f"Worker {self.worker} lost process {self.pid} while it {work}: {self.reason}"


class DeathCauses:
    """What processes die of, in one container. Each kill for lack of memory explains one of them."""

    def __init__(self, folder: Path = CGROUPS) -> None:
        self._folder = folder
        self._explained = Memory.read(folder).kills
        self._lock = Lock()

    def of_exit(self, code: int) -> str:
        """Why a process ended with an exit code, in which billiard writes signals as negative numbers."""
        if code >= 0:
            return f"os._exit or sys.exit with code {code}"
        if -code == LIMIT_SIGNAL:
            return KILLED_AT_LIMIT
        try:
            name = Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if name == "SIGKILL":
            with self._lock:
                memory = Memory.read(self._folder)
                if memory.kills > self._explained:
                    self._explained += 1
                    return ", ".join(part for part in ("killed (out of memory?)", str(memory)) if part)
        if name == "SIGBUS":
            return f"killed by SIGBUS (shared memory is full? {shared_memory.described()})"
        return f"killed by {name}"

    def of_error(self, error: BaseException) -> str:
        """The same, from the error that Celery's main process gets for a process that is gone."""
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            return self.of_exit(code)
        found = STATUS.search(str(error))
        if not found:
            return str(error) or type(error).__name__
        return self.of_exit(-int(found[2]) if found[1] == "signal" else int(found[2]))


def is_wanted(error: BaseException) -> bool:
    """Whether a process ended itself on purpose, since its step had to end."""
    found = STATUS.search(str(error))
    return found is not None and found.groups() == ("exitcode", str(ENDED_ITSELF))


def report_lost(lost: LostProcess) -> Thread:
    """Let another process tell; errors are only logged."""
    logger.error("%s", lost, extra={"action": "process.lost"})
    thread = Thread(target=in_context(_report_elsewhere), args=(lost,), name="report-loss", daemon=True)
    thread.start()
    return thread


def _report_elsewhere(lost: LostProcess) -> None:
    command = [sys.executable, "-m", __name__, json.dumps(asdict(lost))]
    try:
        with own_child(lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL)) as process:
            try:
                if process.wait(TELL_SECS):
                    raise subprocess.CalledProcessError(process.returncode, command)
            finally:
                process.kill()
                process.wait()
    except (OSError, subprocess.SubprocessError) as error:
        logger.error(
            "run %s could not be told that %s: %s",
            lost.run_id,
            lost.holder,
            error,
            extra={"action": "loss.not_told"},
        )


def main(argument: str) -> None:
    """The lease first, without Dagster: the next process that gets the step waits for it."""
    lost = LostProcess(**json.loads(argument))
    configure("worker")
    url = database()
    with bound(run=lost.run_id, step=lost.step_key):
        if url:
            mark_lost(lost, url)
        report(lost)


def mark_lost(lost: LostProcess, url: str) -> None:
    import sqlalchemy

    from dagster_stack.store.connections import noting_engine
    from dagster_stack.store.leases import Leases, Work

    Leases(noting_engine(url, poolclass=sqlalchemy.NullPool)).mark_lost(
        Work(lost.run_id, lost.step_key, lost.attempt), lost.holder, lost.reason
    )


def report(lost: LostProcess) -> None:
    """Write it into the run's log."""
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        run = instance.get_run_by_id(lost.run_id)
        if run:
            instance.report_engine_event(str(lost), run, step_key=lost.step_key or None)
        else:
            logger.warning("nobody knows run %s", lost.run_id, extra={"action": "loss.of_nobody"})


def database() -> str | None:
    """The address of Dagster's database, with its password; None without Postgres, as in the embedded mode."""
    from dagster_stack.store.connections import url_from_environment

    try:
        return url_from_environment()
    except UsageError:
        return None


if __name__ == "__main__":
    main(sys.argv[1])
