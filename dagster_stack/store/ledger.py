"""Questions and reports to the event log about work: its holder, how attempts ended, what is new.

The stack's own storage knows leases. Any other (SQLite of `make dev`, Dagster's own) has one writer at a time and none.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from dagster import DagsterEventType, DagsterInstance
from dagster._core.event_api import EventLogCursor

from dagster_stack import tags
from dagster_stack.store.event_log import ENDS, AttemptState, News, PooledEventLogStorage
from dagster_stack.store.leases import Lease, Work


class Ledger(Protocol):
    """One of an instance's two kinds."""

    @property
    def lease(self) -> Lease | None:
        """What this process works for."""

    def active(self, run_ids: list[str]) -> Collection[Work]:
        """The works of these runs that have a living holder."""

    def revoke_steps(self, run_id: str) -> list[Work]:
        """Take a run's steps from their holders; returns these."""

    def release(self, lease: Lease, reason: str) -> None:
        """Release it, so the process that gets the message next begins at once."""

    def check_lease(self) -> None:
        """Raise Fenced when what this process works for has gone to another."""

    def batching(self) -> AbstractContextManager[Any]:
        """Events of this process may be written together while it lasts."""

    def flush(self) -> None:
        """Return when what was reported so far is stored."""

    def news(
        self, run_id: str, after: int, known: Iterable[int], kinds: set[DagsterEventType], limit: int
    ) -> News:
        """At most so many of a run's events of these kinds, after a row; `known` may be left out."""

    def attempt_state(self, run_id: str, step_key: str) -> AttemptState:
        """As it is now."""


class PlainLedger:
    """For any instance: there are no leases, and each event is stored when it is reported."""

    lease = None

    def __init__(self, instance: DagsterInstance) -> None:
        self._instance = instance

    def active(self, run_ids: list[str]) -> Collection[Work]:
        return ()

    def revoke_steps(self, run_id: str) -> list[Work]:
        return []

    def release(self, lease: Lease, reason: str) -> None:
        pass

    def check_lease(self) -> None:
        pass

    def batching(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def flush(self) -> None:
        pass

    def news(
        self, run_id: str, after: int, known: Iterable[int], kinds: set[DagsterEventType], limit: int
    ) -> News:
        cursor = EventLogCursor.from_storage_id(after).to_string()
        found = self._instance.get_records_for_run(run_id, cursor, of_type=kinds, limit=limit).records
        # One writer at a time: all that is there is settled.
        return News([(each.storage_id, each.event_log_entry.dagster_event) for each in found], 0, 0)

    def attempt_state(self, run_id: str, step_key: str) -> AttemptState:
        run = self._instance.get_run_by_id(run_id)
        if run is None:
            return AttemptState(None, None, Counter())
        records = self._instance.get_records_for_run(run_id, of_type=ENDS).records
        events = (record.event_log_entry.dagster_event for record in records)
        ends = Counter(event.event_type for event in events if event and event.step_key == step_key)
        return AttemptState(run, run.tags.get(tags.CODE), ends)


def stack_storage(instance: DagsterInstance) -> PooledEventLogStorage | None:
    """The stack's own storage, for what only that can do; None: the instance has another."""
    storage = instance.event_log_storage
    return storage if isinstance(storage, PooledEventLogStorage) else None


def ledger_of(instance: DagsterInstance) -> Ledger:
    return stack_storage(instance) or PlainLedger(instance)
