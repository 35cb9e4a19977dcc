"""The run's view of its event log: every event once, in the order of the log, read at little cost."""

from collections.abc import Iterator

from dagster import DagsterEvent, DagsterEventType, DagsterInstance
from dagster._core.event_api import EventLogCursor

from dagster_stack.storage.event_log import PooledEventLogStorage

#: Rows that one query reads at most.
PAGE = 1000


class EventTail:
    """Reads a run's Dagster events from where it stopped.

    Two writers may commit in another order than they took their rows' numbers, and leave an event behind the
    cursor. A step's success must not be seen before its outputs: Dagster would skip what waits for them. So with the
    stack's own storage each read begins further up, and asks for the rows that it has not seen. `look_back` moves
    that place, and `reread` begins at the start of the run.
    """

    def __init__(self, instance: DagsterInstance, run_id: str, kinds: set[DagsterEventType]) -> None:
        self._instance = instance
        self._run_id = run_id
        self._kinds = kinds
        self._cursor = -1
        #: Rows that were handed out, and those of them that come after the older mark.
        self._seen: set[int] = set()
        self._recent: set[int] = set()
        #: The cursor as it was when the log was last looked back at, and the time before.
        self._marks = (-1, -1)

    def read(self) -> Iterator[DagsterEvent]:
        """The events that are new since the last call."""
        yield from self._pages(self._cursor if self._own_storage is None else self._marks[0])

    def look_back(self) -> Iterator[DagsterEvent]:
        """The same, and what appeared late among the rows since the look back before the last one."""
        older, newer = self._marks
        self._marks = (newer, self._cursor)
        yield from self._pages(older)
        self._recent = {number for number in self._recent if number > newer}

    def reread(self) -> Iterator[DagsterEvent]:
        """The events of the whole run that were never handed out: the last look before a step counts as lost."""
        yield from self._pages(-1)

    def _pages(self, after: int) -> Iterator[DagsterEvent]:
        more = True
        while more:
            rows, more = self._page(after)
            for number, event in rows:
                after = max(after, number)
                self._cursor = max(self._cursor, number)
                if number in self._seen:
                    continue
                self._seen.add(number)
                self._recent.add(number)
                if event:
                    yield event

    def _page(self, after: int) -> tuple[list[tuple[int, DagsterEvent | None]], bool]:
        if storage := self._own_storage:
            rows = storage.news(self._run_id, after, self._recent, self._kinds, PAGE)
            return rows, len(rows) == PAGE
        found = self._instance.get_records_for_run(
            self._run_id,
            EventLogCursor.from_storage_id(after).to_string(),
            of_type=self._kinds,
            limit=PAGE,
        )
        return [
            (each.storage_id, each.event_log_entry.dagster_event) for each in found.records
        ], found.has_more

    @property
    def _own_storage(self) -> PooledEventLogStorage | None:
        """None: another storage, which has one writer at a time."""
        storage = self._instance.event_log_storage
        return storage if isinstance(storage, PooledEventLogStorage) else None
