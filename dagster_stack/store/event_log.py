"""Dagster's event log on the process's pool: a step's events are written together, and only by whom the step belongs to.

Dagster's own opens a connection for every event (20 ms over a container network with SCRAM) and commits each one by
itself.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakSet

from dagster import DagsterEvent, DagsterRun, DagsterRunStatus
from dagster._core.events import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    DagsterEventType,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.event_log.schema import AssetEventTagsTable
from dagster._serdes import deserialize_value, serialize_value
from sqlalchemy.engine import Connection, Engine

from dagster_stack import tags
from dagster_stack.errors import Fenced, Refused
from dagster_stack.forks import leave
from dagster_stack.store import connections, within
from dagster_stack.store.child_events import ChildEvents
from dagster_stack.store.connections import patient_connection, patiently
from dagster_stack.store.event_batch import EventBatch
from dagster_stack.store.leases import Lease, Work, fenced
from dagster_stack.store.pools import FencedSlots
from dagster_stack.store.session import Session
from dagster_stack.store.sqlstate import is_refusal, sentence
from dagster_stack.store.statements import statements
from dagster_stack.store.superseded import INDEXED_EVENTS, REPORTED, STARTS, Reported, superseded
from dagster_stack.texts import presentable, shown

#: Events that are awaited: a step's end by the executor, its start by a person.
AWAITED_EVENTS = {
    DagsterEventType.STEP_START,
    # The start of a step that is tried again.
    DagsterEventType.STEP_RESTARTED,
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_UP_FOR_RETRY,
}
#: Events by which a process begins a run, or a step of one that another process has begun.
BEGINNINGS = {DagsterEventType.PIPELINE_START, *STARTS}
#: Events that end an attempt of a step.
ENDS = {
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_SKIPPED,
    DagsterEventType.STEP_UP_FOR_RETRY,
}
#: Events by which an attempt of a step ends so that another one may follow at once.
UNSUCCESSFUL = {DagsterEventType.STEP_FAILURE, DagsterEventType.STEP_UP_FOR_RETRY}
#: What only Dagster reports, and of these a step's whole process: its user code, in a forked child too, is over by then.
BY_DAGSTER = ("STEP_", "HANDLED_OUTPUT", "HOOK_", "RESOURCE_INIT_", "LOGS_CAPTURED")

_SQL = statements(__file__)
STANDING, NEWS, STORED = _SQL["standing"], _SQL["news"], _SQL["stored"]
FENCED_INSERT, WRITES = _SQL["fenced_insert"], _SQL["writes"]


@dataclass(frozen=True)
class News:
    """Events with the numbers of their rows, and how far the database's transactions were when they were read."""

    events: list[tuple[int, DagsterEvent | None]]
    #: The oldest transaction under way, and the next one to begin, by number: all before the first have ended.
    oldest: int
    next: int


class AttemptState(NamedTuple):
    """A run as it is now, and how attempts of one of its steps ended."""

    #: None: it is not in the database.
    run: DagsterRun | None
    #: The hash of the code that drives the run; None when it is not set.
    code: str | None
    ends: Counter[DagsterEventType]


class PooledEventLogStorage(FencedSlots):
    """Dagster's event log on the process's pool, and the stack's ledger; inside `batching` events are written together."""

    def __init__(self, url: str, engine: Engine, session: Session) -> None:
        super().__init__(url, engine, session)
        self._batch: EventBatch | None = None
        #: Writes for the lease so far. Two threads write: this process's, and the one of a batch.
        self._writes = 0
        self._writing = threading.Lock()
        #: What executions of the same step attempt that were lost have stored in Dagster's asset tables.
        self._reported: list[Reported] = []
        #: How forked children report to this process; made before the first of them.
        self._children: ChildEvents | None = None
        #: Whether this process is a child of the one that has the lease.
        self._is_child = False
        #: Called before it is stored that an attempt did not succeed: what it has started must not outlive it.
        self._before_failure: Callable[[EventLogEntry], EventLogEntry] | None = None

    def _connect(self) -> AbstractContextManager[Connection]:
        return self._connection()

    def has_table(self, table_name: str) -> bool:
        """Dagster's own. Earlier releases leave its connection to the garbage collector, and a process has two."""
        with self._connect() as connection:
            return bool(connection.dialect.has_table(connection, table_name))

    @property
    def lease(self) -> Lease | None:
        """What this process works for."""
        return self._session.lease

    @contextmanager
    def batching(
        self, before_failure: Callable[[EventLogEntry], EventLogEntry] | None = None
    ) -> Iterator[EventBatch]:
        """Collect this process's events while the context lasts; whatever somebody awaits is written at once.

        `before_failure` gets the event that says that an attempt did not succeed, and returns what is stored.
        """
        batch = EventBatch(self._write)
        self._batch, self._before_failure = batch, before_failure
        try:
            yield batch
        finally:
            self._batch = self._before_failure = None
            batch.close()

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Store what is reported of the lease's run only while the lease holds; raises Fenced when it does not.

        A step that the run's own process executes counts while the lease on the run holds.
        """
        outer = self._session.lease
        if outer is None:
            self._session.lease, self._session.given_up, self._writes = lease, False, 0
            self._session.inner.clear()
            self._is_child = False
            _leased.add(self)
        self._reported = []
        try:
            if lease.work.step_key and lease.epoch > 1:
                self._take_over(lease.work)
            yield
            if outer is None:
                self._close_to_children()
        finally:
            if outer is None:
                with suppress(Exception):
                    self._close_to_children()
                _leased.discard(self)
            self._session.lease, self._reported = outer, []

    # --- forked children: they report to the process that has the lease -----------------------------------

    def listen_to_children(self) -> None:
        """Before a fork."""
        if self._children is None and not self._is_child:
            self._children = ChildEvents(self._store_of_child)

    def become_child(self) -> None:
        """After a fork, in the child: batch, count of writes and locks are its parent's."""
        self._is_child = True
        if self._children:
            self._children.leave_to_parent()

    def _close_to_children(self) -> None:
        children, self._children = self._children, None
        if children:
            children.close()

    def _report_to_parent(self, event: EventLogEntry) -> None:
        kind = event.get_dagster_event().event_type_value if event.is_dagster_event else ""
        is_dagsters = kind.startswith(BY_DAGSTER) and kind != DagsterEventType.STEP_EXPECTATION_RESULT.value
        if is_dagsters and event.run_id not in self._session.inner:
            leave()
        if self._children is None:
            raise Fenced("this child has no way to report: its parent could not make one before the fork")
        self._children.send(event)

    def _store_of_child(self, event: EventLogEntry) -> None:
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind in BEGINNINGS:
            self._note_inner(event.run_id)
        self._store(event, kind)

    def _note_inner(self, run_id: str) -> Lease | None:
        """A run that is executed within a step is part of that execution: what is reported of it counts by its lease."""
        lease = within.lease_here(run_id)
        if lease:
            self._session.inner[run_id] = lease
            # Nothing else is by an instance of the step's own.
            self._session.given_up = self._session.given_up and self._session.lease is not None
        return lease

    def lease_for(self, run_id: str) -> Lease | None:
        """The lease by which this process reports on a run; raises GivenUp."""
        return self._session.lease_for(run_id)

    def check_lease(self, run_id: str = "") -> None:
        """Raise Fenced when what this process works for, or that run, has gone to another; nothing without a lease."""
        lease = self.lease_for(run_id) if run_id else self.lease
        if lease:
            with self._giving_up():
                self.leases.check(lease)

    def store_event(self, event: EventLogEntry) -> None:
        kind = event.dagster_event_type if event.is_dagster_event else None
        lease = self._note_inner(event.run_id) if kind in BEGINNINGS else None
        if lease and kind == DagsterEventType.PIPELINE_START:
            # Before the run is seen as started.
            self._instance.add_run_tags(event.run_id, {tags.WITHIN: within.to_text(lease)})
        if self._is_child:
            self._report_to_parent(event)
            return
        if kind in UNSUCCESSFUL and self._before_failure:
            event = self._before_failure(event)
        if self._children:
            # What children have said before stands before it.
            self._children.drain()
        self._store(event, kind)

    def _store(self, event: EventLogEntry, kind: DagsterEventType | None) -> None:
        batch = self._batch
        if kind in INDEXED_EVENTS:
            if batch:
                batch.flush()
            event = as_shown(event)
            self._store_indexed(event.run_id, [event], partial(super().store_event, event))
        elif batch:
            batch.add(event, at_once=kind in AWAITED_EVENTS)
        else:
            self._write([event])

    def _store_indexed(
        self, run_id: str, events: Sequence[EventLogEntry], by_dagster: Callable[[], None]
    ) -> None:
        """Dagster's own way, but a report that a lost execution of this attempt made too is replaced, not repeated."""
        reported = self._reported if run_id not in self._session.inner else []

        def store(again: bool) -> None:
            if again and self._is_stored(events[0]):
                return
            if not reported:
                by_dagster()
                return
            # All that was there, also when this is tried again.
            self._reported = list(reported)
            for event in events:
                self._store_or_replace(event)

        try:
            self._store_whole(run_id, store)
        except Exception as error:
            if is_refusal(error):
                self._forget_refused(run_id)
            raise

    def _forget_refused(self, run_id: str) -> None:
        """A run whose launch ends with an error, since the assets that it plans to make are refused, never starts."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run and run.status == DagsterRunStatus.NOT_STARTED:
            self._instance.delete_run(run_id)

    def _is_stored(self, event: EventLogEntry) -> bool:
        with self._connection() as connection:
            return connection.execute(STORED, self._event_to_row(event)).first() is not None

    def _store_or_replace(self, event: EventLogEntry) -> None:
        row, same = self._event_to_row(event), Reported.of(event).same
        earlier = next((each for each in self._reported if each.same == same), None)
        if earlier is None:
            super().store_event(event)
            return
        self._reported.remove(earlier)
        with self.index_transaction() as connection:
            events, asset_tags = SqlEventLogStorageTable, AssetEventTagsTable
            renewed = {"event": row["event"], "timestamp": row["timestamp"]}
            connection.execute(events.update().where(events.c.id == earlier.event_id).values(renewed))
            connection.execute(asset_tags.delete().where(asset_tags.c.event_id == earlier.event_id))
            if event.dagster_event_type in ASSET_EVENTS and row["asset_key"]:
                self._store_asset_event_tags(connection, [event], [earlier.event_id])
                self._store_asset_event(connection, event, earlier.event_id)
        if event.dagster_event_type in ASSET_CHECK_EVENTS:
            self.store_asset_check_event(event, earlier.event_id)

    def _take_over(self, work: Work) -> None:
        """Take over from executions of a step attempt that did not end: their outputs do not count any more, and
        what they said of assets is replaced when it is said again."""
        output = DagsterEventType.STEP_OUTPUT
        outputs = []
        for number, event in self._reported_of(work, {output, *INDEXED_EVENTS}):
            if event.dagster_event_type == output:
                outputs.append((number, self._event_to_row(superseded(event))))
            else:
                self._reported.append(Reported.of(event, number))
        if outputs:
            self._store_whole(work.run_id, lambda _: self._rewrite(outputs))

    def _rewrite(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Replace the events of rows of the log."""
        events = SqlEventLogStorageTable
        with self._connection() as connection:
            for number, row in rows:
                changed = {name: row[name] for name in ("event", "dagster_event_type")}
                connection.execute(events.update().where(events.c.id == number).values(changed))

    def begun(self, work: Work) -> str | None:
        """The text by which the last execution of a step attempt reported its start; None: none has begun."""
        executing = begun = None
        for _, event in self._reported_of(work, {DagsterEventType.STEP_WORKER_STARTED, *STARTS}):
            if event.dagster_event_type in STARTS:
                begun = executing or event.message
            else:
                executing = event.message
        return begun

    def _reported_of(self, work: Work, kinds: Iterable[DagsterEventType]) -> list[tuple[int, EventLogEntry]]:
        """What the attempt in question has reported so far of these kinds, with the numbers of the rows."""
        values = {
            "run": work.run_id,
            "step": work.step_key,
            "kinds": [kind.value for kind in kinds],
            "retried": DagsterEventType.STEP_UP_FOR_RETRY.value,
        }
        rows = self._patiently(REPORTED, values).all()
        return [(number, deserialize_value(event, EventLogEntry)) for number, event in rows]

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Dagster's own, for materialisations if DAGSTER_EVENT_BATCH_SIZE is set; they are fenced like all others."""
        if self._is_child:
            for event in events:
                self._report_to_parent(event)
            return
        if self._batch:
            self._batch.flush()
        for run_id, group in groupby(events, lambda event: event.run_id):
            of_run = [as_shown(event) for event in group]
            self._store_indexed(run_id, of_run, partial(super().store_event_batch, of_run))

    def flush(self) -> None:
        """Return when everything that was reported so far is stored."""
        if self._is_child:
            return
        if self._children:
            self._children.drain()
        if self._batch:
            self._batch.flush()

    def news(
        self, run_id: str, after: int, known: Iterable[int], kinds: Iterable[DagsterEventType], limit: int
    ) -> News:
        """A run's events of these kinds after a row, but for known ones."""
        values = {
            "run": run_id, "after": after, "known": list(known), "kinds": [kind.value for kind in kinds], "limit": limit,
        }  # fmt: skip
        rows = self._patiently(NEWS, values).all()
        events = [
            (number, deserialize_value(event, EventLogEntry).dagster_event)
            for _, _, number, event in rows
            if number is not None
        ]
        return News(events, *rows[0][:2])

    def attempt_state(self, run_id: str, step_key: str) -> AttemptState:
        """A run as it is now, and how attempts of its step ended."""
        kinds = [kind.value for kind in ENDS]
        values = {"run": run_id, "step": step_key, "kinds": kinds, "code_tag": tags.CODE}
        rows = self._patiently(STANDING, values).all()
        if not rows:
            return AttemptState(None, None, Counter())
        status, body, code = rows[0][:3]
        # As Dagster reads it: the status in the body may be an older one.
        run = deserialize_value(body, DagsterRun).with_status(DagsterRunStatus(status))
        return AttemptState(
            run, code, Counter({DagsterEventType(kind): count for *_, kind, count in rows if kind})
        )

    def active(self, run_ids: Sequence[str]) -> Collection[Work]:
        """The works of these runs that have a living holder."""
        return self.leases.active(run_ids)

    def revoke_steps(self, run_id: str) -> list[Work]:
        """Take a run's steps from their holders; returns these."""
        return self.leases.revoke_steps(run_id)

    def release(self, lease: Lease, reason: str) -> None:
        """Release it, so the process that gets the message next begins at once."""
        self.leases.release(lease, reason)

    def _event_to_row(self, event: EventLogEntry) -> dict[str, Any]:
        row = super()._event_to_row(event)
        row["event"] = presentable(row["event"])
        if row["partition"]:
            row["partition"] = shown(row["partition"])
        return row

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        """One statement for a run, hence one commit. What the database refuses is left out; raises Refused when that
        is more than a line of the log."""
        for run_id, group in groupby(events, lambda event: event.run_id):
            of_run = list(group)
            try:
                self._write_rows(run_id, of_run)
            except Exception as error:
                if not is_refusal(error):
                    raise
                self._write_one_by_one(run_id, of_run)

    def _write_one_by_one(self, run_id: str, events: Sequence[EventLogEntry]) -> None:
        refused: Exception | None = None
        for event in events:
            if refused and event.is_dagster_event and event.dagster_event_type in ENDS:
                # Its step can't succeed without what was refused.
                continue
            try:
                self._write_rows(run_id, [event])
            except Exception as error:
                if not is_refusal(error):
                    raise
                if event.is_dagster_event:
                    refused = refused or error
                else:
                    self._write_rows(run_id, [in_place_of(event, error)])
        if refused:
            raise Refused(f"The event log does not take an event of it: {sentence(refused)}") from refused

    def _write_rows(self, run_id: str, events: Sequence[EventLogEntry]) -> None:
        rows = [self._event_to_row(event) for event in events]
        lease = self._session.lease_for(run_id)
        if lease and run_id in self._session.inner:
            self._write_inner(run_id, rows)
        elif lease:
            self._write_fenced(rows, lease)
        else:
            self._patiently(SqlEventLogStorageTable.insert(), rows, connections.write_patience)

    def _write_fenced(self, rows: Sequence[Mapping[str, Any]], lease: Lease) -> None:
        columns = {f"{name}s": [row[name] for row in rows] for name in rows[0]}
        with self._writing:
            self._writes += 1
            values = {**lease.key, "writes": self._writes, **columns}
            if self._patiently(FENCED_INSERT, values).rowcount != len(rows):
                # Another process has the work now, or the first of two tries went through: the count tells, since
                # nobody but this process counts for this epoch. Children report to it.
                found = self._patiently(WRITES, lease.key).first()
                if found is None or found[0] != self._writes:
                    raise fenced(lease)

    def _write_inner(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Under a lease whose writes another storage, or process, counts."""

        def store(again: bool) -> None:
            with self._connection() as connection:
                if not (again and connection.execute(STORED, rows[0]).first()):
                    connection.execute(SqlEventLogStorageTable.insert(), rows)

        self._store_whole(run_id, store)

    def _patiently(self, statement: Any, values: Any, patience: float | None = None) -> Any:
        def execute() -> Any:
            with patient_connection(self._engine) as connection:
                result = connection.execute(statement, values)
                return result.freeze()() if result.returns_rows else result

        with self._giving_up():
            return patiently(execute, patience)


def as_shown(event: EventLogEntry) -> EventLogEntry:
    """An event that Dagster's tables of assets get too, with texts that can be stored there and shown."""
    text = serialize_value(event)
    mended = presentable(text)
    return event if mended is text else deserialize_value(mended, EventLogEntry)


def in_place_of(event: EventLogEntry, error: Exception) -> EventLogEntry:
    """The event that replaces a line which the database does not take."""
    return event._replace(user_message=f"A line that was logged here could not be stored: {sentence(error)}")


#: Those whose process works for a lease.
_leased: WeakSet[PooledEventLogStorage] = WeakSet()


def _before_fork() -> None:
    for storage in list(_leased):
        storage.listen_to_children()


def _in_child() -> None:
    for storage in list(_leased):
        storage.become_child()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
