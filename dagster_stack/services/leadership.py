"""Which of several daemons works: the one that has the lease. The others have loaded everything, and stand by.

The leader's writes are stored while the lease is its own, or not at all: ticks, runs, launches. One that was frozen or cut off,
and whose lead another one has taken, ends itself when it finds that.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from dagster import DagsterInstance
from dagster._utils.interrupts import raise_interrupts_as
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from dagster_stack.messaging.workers import HOST_VARIABLE
from dagster_stack.services.health import EXIT_CODE
from dagster_stack.store import connections
from dagster_stack.store.lease_renewal import LeaseRenewal
from dagster_stack.store.leases import HOLD_LEAD, LEAD, STOPPED, Lease, Leases, Renewal, fenced

logger = logging.getLogger(__name__)

#: Seconds between two looks of a daemon that stands by.
LOOK_SECS = 1
#: Seconds without a look after which one that stands by is unwell.
SILENCE_SECS = 60
#: Seconds after its last sign of life for which a daemon may be there that knows no lease: Dagster's are 30 s apart.
ALONE_SECS = 40


class Leadership:
    """This daemon's part in it. `last_sign` gives the last sign of life of any daemon, in seconds since 1970."""

    def __init__(
        self,
        leases: Leases,
        last_sign: Callable[[], float],
        holder: str | None = None,
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        self._leases, self._last_sign = leases, last_sign
        self._holder = holder or own_name()
        self._exit_process = exit_process
        self._lease: Lease | None = None
        self._renewal: LeaseRenewal | None = None
        self._looked_at: float | None = None

    def await_lead(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return when this daemon leads; raises KeyboardInterrupt when it is told to stop. `meanwhile` may fail."""
        is_told = False
        while not self._take():
            if not is_told:
                logger.info("standing by: another daemon leads", extra={"action": "lead.awaited"})
                is_told = True
            with raise_interrupts_as(KeyboardInterrupt):
                time.sleep(LOOK_SECS)
            try:
                meanwhile()
            except Exception as error:
                logger.warning(
                    "the code could not be loaded anew: %s", error, extra={"action": "definitions.old"}
                )

    def _take(self) -> bool:
        try:
            lease = self._acquire()
        except SQLAlchemyError as error:
            logger.warning(
                "whether another daemon leads is not known: %s", error, extra={"action": "lead.unknown"}
            )
            return False
        self._looked_at = time.monotonic()
        if not lease:
            return False
        ends = [str(end) for end in lease.before]
        self._lease = lease
        connections.guard_writes(partial(hold, lease))
        self._renewal = LeaseRenewal(self._leases, lease, self._heard)
        self._renewal.start()
        logger.info(
            "this daemon leads%s", f" after {ends[-1]}" if ends else "", extra={"action": "lead.taken"}
        )
        self._leases.forget_ends(LEAD)
        return True

    def _acquire(self) -> Lease | None:
        # A mere question: whoever asks for the lease locks it for an instant, which holds up the leader's writes.
        holder = self._leases.holder_of(LEAD)
        if holder is None and time.time() - self._last_sign() < ALONE_SECS:
            # Of DAEMONS=1, whose writes nothing refuses.
            return None
        if holder and holder != self._holder:
            return None
        # Its own, if it was killed and started again.
        return self._leases.acquire(LEAD, self._holder)

    def _heard(self, renewal: Renewal | None) -> None:
        if renewal is None:
            logger.critical(
                "another daemon leads by now: this one ends, and stands by when it is started again",
                extra={"action": "lead.lost"},
            )
            logging.shutdown()
            self._exit_process(EXIT_CODE)

    def release(self) -> None:
        """Let another one lead at once, after all that this daemon did has ended."""
        lease, self._lease = self._lease, None
        if lease and self._renewal:
            self._renewal.__exit__()
            self._leases.release(lease, STOPPED)

    @property
    def leads(self) -> bool:
        return self._lease is not None

    def complaint(self) -> str | None:
        """Why a daemon that does not lead could not take over."""
        if self._looked_at is None:
            return "it loads the code"
        silence = time.monotonic() - self._looked_at
        return (
            f"whether another daemon leads is not known for {silence:.0f} s"
            if silence > SILENCE_SECS
            else None
        )


def own_name() -> str:
    """This daemon's container, and on a further host that one's name."""
    host = os.environ.get(HOST_VARIABLE)
    return f"daemon@{socket.gethostname()}{f' on {host}' if host else ''}"


def hold(lease: Lease, connection: Connection) -> None:
    """Let no other daemon lead until the transaction of a connection ends; raises Fenced when one does already."""
    if connection.execute(HOLD_LEAD, lease.key).first() is None:
        raise fenced(lease)


def last_sign(instance: DagsterInstance) -> float:
    """When any of Dagster's daemons gave its last sign of life, in seconds since 1970."""
    return max((each.timestamp for each in instance.get_daemon_heartbeats().values()), default=0.0)
