"""Leases: who may execute a step attempt, drive a run, or lead the daemons, now. A row in Postgres with a fencing token.

The holder renews its lease by signs of life. Each new holder counts the epoch up, and what a process reports is
stored, in the same statement, only while the epoch is its own: one that was paused or cut off, and whose work has
gone to another, can't write any more. https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from sqlalchemy.engine import Engine

from dagster_stack.errors import Fenced
from dagster_stack.store.connections import patiently
from dagster_stack.store.statements import statements
from dagster_stack.texts import shown
from dagster_stack.timing import RUN_RENEWAL_SECS, STALE_SECS, STEP_RENEWAL_SECS

#: Seconds after a run's end for which its leases are kept: a process of it that was frozen must find that it is late.
KEPT_SECS = 24 * 3600

#: Why a work was handed back, when its process was told to stop (scaling, deployments).
STOPPED = "it was told to stop"
#: Why it was handed back when its execution came to an end and did not report it; counts if the work is asked for again.
UNREPORTED = "it ended, and the end of its work is not in the event log"
#: Characters that are kept of a reason.
REASON_SIZE = 300

_SQL = statements(__file__)
TABLE, COLUMN = _SQL["table"], _SQL["column"]
ACQUIRE = _SQL["acquire"].bindparams(stopped=STOPPED)
RENEW, RELEASE, REVOKE = _SQL["renew"], _SQL["release"], _SQL["revoke"]
MARK_LOST, MARK_LOST_OF_WORKER = _SQL["mark_lost"], _SQL["mark_lost_of_worker"]
ACTIVE, HELD, ENDS, PRUNE = _SQL["active"], _SQL["held"], _SQL["ends"], _SQL["prune"]
HOLD, HOLD_ALONE, HOLD_LEAD = _SQL["hold"], _SQL["hold_alone"], _SQL["lead"]
FORGET_ENDS, DISSOLVE, HOLDER = _SQL["forget_ends"], _SQL["dissolve"], _SQL["holder"]


@dataclass(frozen=True)
class Work:
    """What only one process may do at a time: an attempt of a step, or with an empty key the run itself."""

    run_id: str
    step_key: str = ""
    attempt: int = 0

    @property
    def renew_every(self) -> int:
        """Seconds between two signs of life."""
        return STEP_RENEWAL_SECS if self.step_key else RUN_RENEWAL_SECS

    @property
    def key(self) -> dict[str, Any]:
        return {"run": self.run_id, "step": self.step_key, "attempt": self.attempt}

    def __str__(self) -> str:
        if self == LEAD:
            return "the lead of the daemons"
        return f"step {self.step_key} of run {self.run_id}" if self.step_key else f"run {self.run_id}"


#: What one of several daemons does. No run has such an id.
LEAD = Work("daemons")


@dataclass(frozen=True)
class Loss:
    """A holder that died, or did not end its work for another reason."""

    holder: str
    reason: str
    #: When it was noticed, by Postgres's clock, in seconds since 1970.
    at: float = field(default=0.0, compare=False)

    @classmethod
    def all(cls, entries: Sequence[Mapping[str, Any]]) -> "tuple[Loss, ...]":
        return tuple(cls(entry["holder"], entry["reason"], entry.get("at", 0.0)) for entry in entries)

    def __str__(self) -> str:
        return f"{self.holder}: {self.reason}"


@dataclass(frozen=True)
class Lease:
    """The right to do a work, until another process has a higher epoch."""

    work: Work
    epoch: int
    holder: str
    #: The holders before this one that died.
    losses: tuple[Loss, ...] = ()
    #: Those that handed the work back, or ended without its end.
    returns: tuple[Loss, ...] = ()

    @property
    def key(self) -> dict[str, Any]:
        return {**self.work.key, "epoch": self.epoch}

    @property
    def before(self) -> list[Loss]:
        """The executions before this one, in their order."""
        return sorted([*self.losses, *self.returns], key=lambda each: each.at)


@dataclass(frozen=True)
class Renewal:
    """The database's answer to a sign of life."""

    #: A value of DagsterRunStatus; None: the run was deleted.
    run_status: str | None


class Leases:
    """The leases of a database. Waits while it is away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acquire(self, work: Work, holder: str) -> Lease | None:
        """The right to do a work from now on; None while another living process has it."""
        rows = self._execute(ACQUIRE, **work.key, holder=holder, stale=STALE_SECS)
        if not rows:
            return None
        epoch, losses, returns = rows[0]
        return Lease(work, epoch, holder, Loss.all(losses), Loss.all(returns))

    def renew(self, lease: Lease, leaving: bool = False) -> Renewal | None:
        """Give a sign of life; None when another process has taken over.

        `leaving`: whoever gets the message next may begin, and if this process ends, it is no loss.
        """
        rows = self._execute(RENEW, **lease.key, leaving=leaving)
        return Renewal(rows[0][0]) if rows else None

    def release(self, lease: Lease, reason: str = UNREPORTED) -> None:
        """Hand a work over: the next process that asks gets it with the reason, and writes of this one are refused."""
        self._execute(RELEASE, **lease.key, reason=shown(reason)[:REASON_SIZE])

    def revoke_steps(self, run_id: str) -> list[Work]:
        """Refuse all further writes of a run's step executions; returns those that had not ended."""
        return [Work(*row) for row in self._execute(REVOKE, run=run_id)]

    def mark_lost(self, work: Work, holder: str, reason: str) -> None:
        """Report that a holder died, and of what: the next process that asks gets the work at once."""
        self._execute(MARK_LOST, **work.key, holder=holder, reason=shown(reason)[:REASON_SIZE])

    def mark_lost_of_worker(self, worker: str, started_at: float) -> None:
        """The same for the processes that a worker had before it was started anew, then by the monotonic clock."""
        # With what follows the worker's name in a holder's: another worker's may begin with it.
        values = {"worker": f"{worker} ", "reason": "its worker ended and was started again"}
        # As old as it is when the statement is executed, not when the wait for Postgres began.
        self._execute(MARK_LOST_OF_WORKER, lambda: {"age": time.monotonic() - started_at}, **values)

    def active(self, run_ids: Sequence[str], stale_after: float = STALE_SECS) -> set[Work]:
        """The works of these runs whose holders gave a sign of life within so many seconds."""
        rows = self._execute(ACTIVE, runs=list(run_ids), stale=stale_after)
        return {Work(*row) for row in rows}

    def lost(self, leases: Iterable[Lease]) -> list[Lease]:
        """Those of these leases that have no holder any more: their last holders can't report anything."""
        asked = list(leases)
        runs = [each.work.run_id for each in asked]
        rows = self._execute(HELD, runs=runs, stale=STALE_SECS) if asked else ()
        held = {(Work(*row[:3]), row[3]) for row in rows}
        return [each for each in asked if (each.work, each.epoch) not in held]

    def end_of(self, lease: Lease) -> Loss | None:
        """What its holder died of, or why it gave the work up; None: the work ended."""
        rows = self._execute(ENDS, **lease.work.key)
        ends = [end for losses, returns in rows for end in Loss.all([*losses, *returns])]
        own = [end for end in ends if end.holder == lease.holder and end.reason != UNREPORTED]
        return max(own, key=lambda end: end.at, default=None)

    def prune(self, age: float = KEPT_SECS) -> None:
        """Delete the leases of runs that ended so many seconds ago, or were deleted."""
        self._execute(PRUNE, age=age, lead=LEAD.run_id)

    def forget_ends(self, work: Work) -> None:
        """Forget how the former holders of a work ended, which a run's end does for its own."""
        self._execute(FORGET_ENDS, **work.key)

    def dissolve(self, work: Work) -> None:
        """Let a work have no lease: all further writes of its last holder are refused."""
        self._execute(DISSOLVE, **work.key)

    def holder_of(self, work: Work) -> str | None:
        """The living process that has a work; empty when it lives no more, None when the work has no lease."""
        rows = self._execute(HOLDER, **work.key, stale=STALE_SECS)
        return (rows[0][0] or "") if rows else None

    def check(self, lease: Lease) -> None:
        """Raise Fenced when another process has the work."""
        if not self._execute(HOLD, **lease.key):
            raise fenced(lease)

    def _execute(
        self, statement: sqlalchemy.TextClause, present: Callable[[], dict[str, Any]] = dict, **values: Any
    ) -> Sequence[Any]:
        """A statement's rows; `present` gives the values that depend on when it is executed."""

        def execute() -> Sequence[Any]:
            with self._engine.connect() as connection:
                result = connection.execute(statement, {**values, **present()})
                return result.all() if result.returns_rows else ()

        return patiently(execute)


def fenced(lease: Lease) -> Fenced:
    return Fenced(
        f"{lease.work} is another process's now: what {lease.holder} reports of it does not count any more"
    )
