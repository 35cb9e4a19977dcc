"""Signs of life: a heartbeat file that the container's health check reads, and an exit for what can't work.

Compose restarts no container for being unhealthy. A process that can't do its work therefore ends
itself, and its restart policy brings it back.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import bootsteps

from dagster_stack.patches.celery import processes
from dagster_stack.timing import EXIT_AFTER_SECS, LOOP_SILENCE_SECS, PROBE_INTERVAL_SECS

logger = logging.getLogger(__name__)

#: Touched while all is well; compose.yaml's health check fails when it is older than 30 s.
HEARTBEAT_FILE = Path(os.environ.get("DAGSTER_STACK_HEARTBEAT_FILE") or "/tmp/heartbeat")
#: Seconds between looks until the first one that finds all well.
FIRST_INTERVAL_SECS = 1
#: Exit code of a process that gave itself up, so that it can be told from a crash (EX_TEMPFAIL).
EXIT_CODE = 75

#: Linux process states that do no work: stopped, traced, zombie, dead (`man 5 proc`).
LIFELESS_STATES = frozenset("TtZXx")


class Heartbeat(threading.Thread):
    """Touches the file while `probe` returns None; its text says why not, and is logged.

    With `exit_after` the process ends itself after that many seconds of failed looks.
    """

    def __init__(
        self,
        probe: Callable[[], str | None],
        file: Path = HEARTBEAT_FILE,
        interval: float = PROBE_INTERVAL_SECS,
        exit_after: float | None = None,
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._probe = probe
        self._file = file
        self._interval = interval
        self._exit_after = exit_after
        self._exit_process = exit_process
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            self._watch()
        except BaseException:
            # A process without its watchman would look well, or be taken for dead, for ever.
            logger.critical(
                "the heartbeat thread died, ending the process",
                exc_info=True,
                extra={"action": "process.failed"},
            )
            self._exit(EXIT_CODE)

    def _watch(self) -> None:
        well_at = time.monotonic()
        complaint: str | None = None
        # The first sign of life ends the wait of `make up`: look for it more often.
        interval = min(FIRST_INTERVAL_SECS, self._interval)
        while not self._stopped.wait(interval):
            reason = self._look()
            if reason is None:
                if complaint:
                    logger.warning("healthy again", extra={"action": "health.restored"})
                well_at, complaint, interval = time.monotonic(), None, self._interval
                self._file.touch()
                continue
            silent_for = time.monotonic() - well_at
            if reason != complaint:
                logger.warning("unhealthy: %s%s", reason, self._outlook(), extra={"action": "health.lost"})
                complaint = reason
            if self._exit_after is not None and silent_for > self._exit_after:
                logger.critical(
                    "giving up after %.0f s so that the container restarts: %s",
                    silent_for,
                    reason,
                    extra={"action": "process.given_up"},
                )
                self._exit(EXIT_CODE)
                return

    def _look(self) -> str | None:
        try:
            return self._probe()
        except Exception as error:
            return f"the look itself failed: {error!r}"

    def _exit(self, code: int) -> None:
        logging.shutdown()
        self._exit_process(code)

    def stop(self) -> None:
        self._stopped.set()

    def _outlook(self) -> str:
        return f"; exits for a restart if that lasts {self._exit_after:.0f} s" if self._exit_after else ""


class Watchdog(bootsteps.StartStopStep):
    """Proves that a Celery worker's event loop turns, its broker connection stands, its pool lives, and gets work.

    The loop turns only while the connection stands: Celery leaves it to reconnect, and AMQP's own
    heartbeats (`broker_heartbeat` in celery.yaml) end a connection that was cut in silence.
    """

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._last_turn = time.monotonic()
        self._heartbeat: Heartbeat | None = None

    def start(self, worker: Any) -> None:
        worker.timer.call_repeatedly(1.0, self._turn)
        self._heartbeat = Heartbeat(lambda: self.probe(worker), exit_after=EXIT_AFTER_SECS)
        self._heartbeat.start()

    def probe(self, worker: Any) -> str | None:
        silence = time.monotonic() - self._last_turn
        if silence > LOOP_SILENCE_SECS:
            return f"no connection to the broker, or the event loop hangs, for {silence:.0f} s"
        complaint = pool_complaint([each.pid for each in processes(worker.pool) if each.pid])
        # The consumer's own one comes from dagster_stack/worker/subscription.py.
        return complaint or getattr(getattr(worker, "consumer", None), "complaint", None)

    def _turn(self) -> None:
        self._last_turn = time.monotonic()


def pool_complaint(pids: list[int]) -> str | None:
    """What is wrong with the pool, if anything: no process at all, or one that is stopped or a zombie."""
    if not pids:
        return "the pool has no process"
    for pid in pids:
        state = process_state(pid)
        if state in LIFELESS_STATES:
            return f"pool process {pid} does not run (state {state})"
    return None


def process_state(pid: int) -> str:
    """The state letter of a process from /proc; X when it is gone."""
    return (process_fields(pid) or ["X"])[0]


def process_fields(pid: int) -> list[str] | None:
    """State, parent's id and the rest that /proc tells of a process; None when it is gone."""
    try:
        # The command's name stands in parentheses and may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
