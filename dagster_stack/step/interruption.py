"""How a process ends its own step that must not go on: it interrupts the step, then ends itself."""

import logging
import os
import signal
from collections.abc import Callable
from threading import Lock, Timer

from dagster_stack.logs.context import in_context
from dagster_stack.store.leases import Work
from dagster_stack.timing import GRACE_SECS
from dagster_stack.worker.lost_processes import ENDED_ITSELF

logger = logging.getLogger(__name__)


class Interruption:
    """Ends what is done within it, once `begin` is called, from any thread; also without broker, runner or database.

    Code that keeps Python's global lock lets no thread of its process do so: only its worker's main process can.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        #: Whether another part of this process sends the interrupt, for the run that it drives.
        self.is_sent_elsewhere = False
        #: Whether it has begun since the step takes longer than its limit; the kernel ends the process then.
        self.is_of_limit = False
        self._has_begun = False
        self._timer: Timer | None = None
        self._is_over = False
        #: Called before the process ends.
        self.before_end: Callable[[], None] = lambda: None
        # An interrupt or end must not hit the process in the middle of its next step.
        self._lock = Lock()

    def __enter__(self) -> "Interruption":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
        if self._timer:
            self._timer.cancel()

    def begin(self, reason: str, of_limit: bool = False) -> None:
        """Interrupt it, once: a second interrupt would hit the step's own cleanup."""
        with self._lock:
            if self._has_begun or self._is_over:
                return
            self._has_begun, self.is_of_limit = True, of_limit
            if not of_limit:
                self._timer = Timer(GRACE_SECS, in_context(self._end_process))
                self._timer.daemon, self._timer.name = True, "interruption"
                self._timer.start()
            if of_limit or not self.is_sent_elsewhere:
                os.kill(os.getpid(), signal.SIGINT)
        logger.warning("%s is interrupted: %s", self._work, reason, extra={"action": "step.interrupting"})

    def _end_process(self) -> None:
        with self._lock:
            if self._is_over:
                return
            logger.error(
                "%s did not end within %s s after it was interrupted: its process ends",
                self._work,
                GRACE_SECS,
                extra={"action": "step.killed"},
            )
            try:
                self.before_end()
            finally:
                os._exit(ENDED_ITSELF)
