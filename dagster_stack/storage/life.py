"""Signs of life: what a process gives the database while it works for a claim, and what it hears from there."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from dagster_stack.logs.context import in_context
from dagster_stack.storage.claims import Claim, Claims, Sign

logger = logging.getLogger(__name__)

#: Seconds between looks whether this process is told to leave.
LOOK_SECS = 0.5


class SignsOfLife(threading.Thread):
    """A thread that renews a claim. `heard` gets what the database says; None once another process has the work."""

    def __init__(
        self,
        claims: Claims,
        claim: Claim,
        heard: Callable[[Sign | None], None],
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(name="signs-of-life", daemon=True)
        self._claims = claims
        self._claim = claim
        self._heard = heard
        self._is_leaving = is_leaving
        self._stopped = threading.Event()
        # What is bound to events where the work is done, for this thread.
        self._watch_in_context = in_context(self._watch)

    def __enter__(self) -> "SignsOfLife":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: it may wait for a database that is away, and says nothing any more.
        self._stopped.set()

    def run(self) -> None:
        self._watch_in_context()

    def _watch(self) -> None:
        every, was_leaving = self._claim.work.beat_every, False
        beat_at = time.monotonic() + every
        while not self._stopped.wait(LOOK_SECS):
            leaving = self._is_leaving()
            if time.monotonic() < beat_at and leaving == was_leaving:
                continue
            try:
                sign = self._claims.beat(self._claim, leaving)
            except SQLAlchemyError as error:
                logger.warning(
                    "no sign of life for %s: %s",
                    self._claim.work,
                    error,
                    extra={"action": "claim.not_renewed"},
                )
                continue
            beat_at, was_leaving = time.monotonic() + every, leaving
            if self._stopped.is_set():
                return
            self._heard(sign)
            if sign is None:
                return
