"""Leases: who may execute a step attempt, or drive a run, now. A row in Postgres with a fencing token.

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
from dagster_stack.texts import shown
from dagster_stack.timing import RUN_RENEWAL_SECS, STALE_SECS, STEP_RENEWAL_SECS

#: Seconds after a run's end for which its leases are kept: a process of it that was frozen must find that it is late.
KEPT_SECS = 24 * 3600

#: Made by `init`. With the second key a new epoch is a change of a key. So it waits for transactions that hold the row
#: FOR KEY SHARE, as fenced writes do; a sign of life does not wait.
TABLE = """
    CREATE TABLE IF NOT EXISTS dagster_stack_claims (
        run_id text NOT NULL,
        step_key text NOT NULL,
        attempt integer NOT NULL,
        epoch integer NOT NULL,
        holder text NOT NULL,
        beat_at timestamptz,
        leaving boolean NOT NULL DEFAULT false,
        writes integer NOT NULL DEFAULT 0,
        losses jsonb NOT NULL DEFAULT '[]',
        returns jsonb NOT NULL DEFAULT '[]',
        PRIMARY KEY (run_id, step_key, attempt),
        UNIQUE (run_id, step_key, attempt, epoch)
    )
"""
#: For a table of an older version; only then, since it waits for open transactions.
COLUMN = """
    DO $$ BEGIN
        IF NOT EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = 'dagster_stack_claims'::regclass AND attname = 'returns'
        ) THEN
            ALTER TABLE dagster_stack_claims ADD COLUMN returns jsonb NOT NULL DEFAULT '[]';
        END IF;
    END $$
"""
#: Why a work was handed back, when its process was told to stop (scaling, deployments).
STOPPED = "it was told to stop"
#: Why it was handed back when its execution came to an end and did not report it; counts if the work is asked for again.
UNREPORTED = "it ended, and the end of its work is not in the event log"
#: Characters that are kept of a reason.
REASON_SIZE = 300


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
        return f"step {self.step_key} of run {self.run_id}" if self.step_key else f"run {self.run_id}"


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


#: A holder that died without a word adds a loss here; one whose death was seen (MARK_LOST), or that handed its work
#: over, has none to add.
ACQUIRE = sqlalchemy.text(
    f"""
    INSERT INTO dagster_stack_claims AS held (run_id, step_key, attempt, epoch, holder, beat_at)
    VALUES (:run, :step, :attempt, 1, :holder, now())
    ON CONFLICT (run_id, step_key, attempt) DO UPDATE SET
        epoch = held.epoch + 1,
        writes = 0,
        losses = CASE
            WHEN held.beat_at IS NULL OR held.leaving OR held.holder = excluded.holder THEN held.losses
            ELSE held.losses || jsonb_build_object(
                'holder', held.holder, 'reason', 'no sign of life for ' || CAST(:stale AS text) || ' s',
                'at', extract(epoch FROM now())
            )
        END,
        returns = CASE
            WHEN held.beat_at IS NULL OR NOT held.leaving THEN held.returns
            ELSE held.returns || jsonb_build_object(
                'holder', held.holder, 'reason', '{STOPPED}', 'at', extract(epoch FROM now())
            )
        END,
        holder = excluded.holder,
        beat_at = excluded.beat_at,
        leaving = false
    WHERE held.beat_at IS NULL
        OR held.beat_at < now() - make_interval(secs => :stale)
        OR held.leaving
        -- The same process asks again, since the connection was lost with the answer.
        OR held.holder = excluded.holder
    RETURNING epoch, losses, returns
    """
)
MINE = "run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch"
RENEW = sqlalchemy.text(
    f"""
    UPDATE dagster_stack_claims SET beat_at = now(), leaving = :leaving WHERE {MINE}
    RETURNING (SELECT status FROM runs WHERE runs.run_id = :run)
    """
)
#: A new epoch without a holder: all further writes of the last holder are refused.
RELEASE = sqlalchemy.text(
    f"""
    UPDATE dagster_stack_claims SET
        epoch = epoch + 1,
        beat_at = NULL,
        returns = returns || jsonb_build_object(
            'holder', holder, 'reason', CAST(:reason AS text), 'at', extract(epoch FROM now())
        )
    WHERE {MINE}
    """
)
REVOKE = sqlalchemy.text(
    """
    UPDATE dagster_stack_claims SET epoch = epoch + 1, beat_at = NULL
    WHERE run_id = :run AND step_key != '' AND beat_at IS NOT NULL
    RETURNING run_id, step_key, attempt
    """
)
#: By the worker whose process died. A process that has already taken over gets the reason too.
MARK_LOST = sqlalchemy.text(
    """
    UPDATE dagster_stack_claims SET
        losses = CASE
            WHEN holder = :holder AND beat_at IS NOT NULL
            THEN losses || jsonb_build_object(
                'holder', CAST(:holder AS text), 'reason', CAST(:reason AS text), 'at', extract(epoch FROM now())
            )
            ELSE coalesce((
                SELECT jsonb_agg(
                    CASE WHEN loss ->> 'holder' = :holder
                    THEN loss || jsonb_build_object('reason', CAST(:reason AS text)) ELSE loss END ORDER BY place
                )
                FROM jsonb_array_elements(losses) WITH ORDINALITY AS each(loss, place)
            ), '[]')
        END,
        epoch = CASE WHEN holder = :holder THEN epoch + 1 ELSE epoch END,
        beat_at = CASE WHEN holder = :holder THEN NULL ELSE beat_at END
    WHERE run_id = :run AND (
        step_key = :step AND attempt = :attempt
        -- With a run, the step that its own process executed.
        OR CAST(:step AS text) = '' AND holder = :holder AND beat_at IS NOT NULL
    )
    """
)
#: Processes of a worker that was started anew: their last sign of life is older than it.
MARK_LOST_OF_WORKER = sqlalchemy.text(
    """
    UPDATE dagster_stack_claims SET
        losses = losses || jsonb_build_object(
            'holder', holder, 'reason', CAST(:reason AS text), 'at', extract(epoch FROM now())
        ),
        epoch = epoch + 1,
        beat_at = NULL
    WHERE starts_with(holder, :worker) AND NOT leaving
        AND beat_at < now() - make_interval(secs => :age)
    """
)
ACTIVE = sqlalchemy.text(
    """
    SELECT run_id, step_key, attempt FROM dagster_stack_claims
    WHERE run_id = ANY(:runs) AND (
        beat_at > now() - make_interval(secs => :stale)
        -- A read-only server takes no sign of life: who had the work still counts as alive.
        OR (beat_at IS NOT NULL AND current_setting('transaction_read_only') = 'on')
    )
    """
)
#: One that is silent may be busy, and comes back to its work as long as the run goes on.
HELD = sqlalchemy.text(
    """
    SELECT held.run_id, step_key, attempt, epoch FROM dagster_stack_claims AS held JOIN runs USING (run_id)
    WHERE run_id = ANY(:runs) AND beat_at IS NOT NULL AND (
        beat_at > now() - make_interval(secs => :stale) OR runs.status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')
    )
    """
)
ENDS = sqlalchemy.text(
    """
    SELECT losses, returns FROM dagster_stack_claims
    WHERE run_id = :run AND step_key = :step AND attempt = :attempt
    """
)
HOLD = sqlalchemy.text(f"SELECT 1 FROM dagster_stack_claims WHERE {MINE} FOR KEY SHARE")
#: The same, once no transaction of the holder's is under way: one whose connection broke may still be, or be stored.
HOLD_ALONE = sqlalchemy.text(f"SELECT 1 FROM dagster_stack_claims WHERE {MINE} FOR UPDATE")
#: Runs that ended a while ago: until then, a zombie of theirs must find that its epoch is not the last. And deleted
#: runs: no process can take their works any more, and a zombie finds no lease at all.
PRUNE = sqlalchemy.text(
    """
    DELETE FROM dagster_stack_claims AS held
    WHERE NOT EXISTS (
        SELECT 1 FROM runs
        WHERE runs.run_id = held.run_id AND NOT (
            runs.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
            AND runs.update_timestamp < now() AT TIME ZONE 'utc' - make_interval(secs => :age)
        )
    )
    """
)


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
        self._execute(PRUNE, age=age)

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
