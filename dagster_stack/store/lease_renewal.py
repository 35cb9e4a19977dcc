"""Signs of life: what a process gives the database while it works for a lease, and what it hears from there."""

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from dagster_stack.logs.context import in_context
from dagster_stack.store.leases import Lease, Leases, Renewal

logger = logging.getLogger(__name__)

#: Seconds between looks whether this process is told to leave.
LOOK_SECS = 0.5


class LeaseRenewal(threading.Thread):
    """A thread that renews a lease. `heard` gets what the database says; None once another process has the work."""

    def __init__(
        self,
        leases: Leases,
        lease: Lease,
        heard: Callable[[Renewal | None], None],
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(name="signs-of-life", daemon=True)
        self._leases = leases
        self._lease = lease
        self._heard = heard
        self._is_leaving = is_leaving
        self._stopped = threading.Event()
        # What is bound to events where the work is done, for this thread.
        self._watch_in_context = in_context(self._watch)

    def __enter__(self) -> "LeaseRenewal":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not joined: it may wait for a database that is away, and says nothing any more.
        self._stopped.set()

    def run(self) -> None:
        self._watch_in_context()

    def _watch(self) -> None:
        every, was_leaving = self._lease.work.renew_every, False
        beat_at = time.monotonic() + every
        while not self._stopped.wait(LOOK_SECS):
            leaving = self._is_leaving()
            if time.monotonic() < beat_at and leaving == was_leaving:
                continue
            try:
                sign = self._leases.renew(self._lease, leaving)
            except SQLAlchemyError as error:
                logger.warning(
                    "no sign of life for %s: %s",
                    self._lease.work,
                    error,
                    extra={"action": "lease.not_renewed"},
                )
                continue
            beat_at, was_leaving = time.monotonic() + every, leaving
            if self._stopped.is_set():
                return
            self._heard(sign)
            if sign is None:
                return
