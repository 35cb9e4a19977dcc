"""The lease that a process works for, and what Dagster's storages share here: connections, transactions, fences."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy
from dagster_postgres.utils import set_pg_statement_timeout
from sqlalchemy.engine import Connection, Engine

from dagster_stack.errors import GivenUp
from dagster_stack.store import connections, leases
from dagster_stack.store.audit import Audit
from dagster_stack.store.connections import patient_connection, patiently
from dagster_stack.store.facts import Facts
from dagster_stack.store.leases import Lease, Leases, fenced
from dagster_stack.store.sqlstate import is_away

Result = TypeVar("Result")

#: Until the transaction ends.
LOCK_RUN = sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtextextended(:run, 0))")


@dataclass
class Session:
    """The lease under which a process works, if any: what it reports of that work counts while the lease is its own."""

    lease: Lease | None = None
    #: The same for the runs that it executes within a step.
    inner: dict[str, Lease] = field(default_factory=dict)
    #: A thread's open transaction, which what Dagster does meanwhile is part of.
    transaction: threading.local = field(default_factory=threading.local)
    #: The database was away for too long, or a write of Dagster's was lost that can't be done again. Then nothing more is
    #: reported, not even that: the process that gets the work next begins where the event log stands.
    given_up: bool = False

    def lease_for(self, run_id: str) -> Lease | None:
        """The lease that covers a report on a run; raises GivenUp after the database was away for too long."""
        lease = self.lease if self.lease and self.lease.work.run_id == run_id else self.inner.get(run_id)
        if lease and self.given_up:
            raise GivenUp(f"{lease.work}: the database was away for too long")
        return lease


class PooledStorage:
    """What run, event and schedule storage have in common: the process's engine, also in Dagit.

    Dagster gives Dagit a pool that answers one request for each of its connections with an error after Postgres
    was restarted.
    """

    def __init__(self, url: str, engine: Engine, session: Session) -> None:
        """`engine` and `session` are shared by the storages of a process."""
        super().__init__(url, should_autocreate_tables=False)  # type: ignore[call-arg]
        self._engine, self._session = engine, session

    @property
    def leases(self) -> Leases:
        return Leases(self._engine)

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def audit(self) -> Audit:
        return Audit(self._engine)

    @property
    def facts(self) -> Facts:
        return Facts(self._engine)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """For Dagster's own code, whose statements are tried again while the server is away.

        A write that may have been done is not, unless it is part of what is stored as a whole.
        """
        running: Connection | None = getattr(self._session.transaction, "connection", None)
        if running:
            yield running
            return
        with self._giving_up(), patient_connection(self._engine) as connection:
            yield connection

    def _store_whole(self, run_id: str, store: Callable[[bool], Result], alone: bool = False) -> Result:
        """What `store` stores counts as a whole, and only while the lease that covers it holds; raises Fenced.

        While the server is away it is called again, with True: the first try is over by then, and was stored if only
        its answer was lost. `alone`: no other process may do a thing of this kind for the run meanwhile.
        """
        again = False

        def attempt() -> Result:
            nonlocal again
            was_tried, again = again, True
            with self._transaction(run_id, alone, was_tried):
                return store(was_tried)

        with self._giving_up():
            # Without any lock nobody can tell whether a first try that was not answered is over.
            only_undone = not (alone or self._session.lease_for(run_id))
            return patiently(attempt, connections.write_patience, only_undone=only_undone)

    @contextmanager
    def _transaction(self, run_id: str, alone: bool = False, again: bool = False) -> Iterator[None]:
        """What this thread stores meanwhile is one transaction; raises Fenced.

        `again`: one whose connection broke has ended when this one begins.
        """
        lease = self._session.lease_for(run_id)
        with patient_connection(self._engine) as kept:
            connection = kept.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                if alone:
                    connection.execute(LOCK_RUN, {"run": run_id})
                hold = leases.HOLD_ALONE if again else leases.HOLD
                if lease and connection.execute(hold, lease.key).first() is None:
                    raise fenced(lease)
                connections.guarded(connection)
                self._session.transaction.connection = connection
                try:
                    yield
                finally:
                    self._session.transaction.connection = None

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_away(error):
                self._session.given_up = True
            raise

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        def limit(connection: Any, _: Any) -> None:
            set_pg_statement_timeout(connection, statement_timeout)

        sqlalchemy.event.listen(self._engine, "connect", limit)
