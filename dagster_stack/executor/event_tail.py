"""The run's view of its event log: every event once, in the order of the log, read at little cost."""

from collections.abc import Iterator

from dagster import DagsterEvent, DagsterEventType, DagsterInstance
from dagster._core.event_api import EventLogCursor

#: Rows that one query reads at most.
PAGE = 1000


class EventTail:
    """Reads a run's Dagster events from where it stopped.

    Two writers may commit in another order than they took their rows' numbers, and leave an event behind the
    cursor. So `look_back` begins further up, and `reread` at the start of the run.
    """

    def __init__(self, instance: DagsterInstance, run_id: str, kinds: set[DagsterEventType]) -> None:
        self._instance = instance
        self._run_id = run_id
        self._kinds = kinds
        self._cursor = -1
        #: Rows that were handed out.
        self._seen: set[int] = set()
        #: The cursor as it was when the log was last looked back at, and the time before.
        self._marks = (-1, -1)

    def read(self) -> Iterator[DagsterEvent]:
        """The events that are new since the last call."""
        yield from self._pages()

    def look_back(self) -> Iterator[DagsterEvent]:
        """The same, and what appeared late among the rows since the look back before the last one."""
        older, newer = self._marks
        self._marks = (newer, self._cursor)
        self._cursor = older
        yield from self._pages()

    def reread(self) -> Iterator[DagsterEvent]:
        """The events of the whole run that were never handed out: the last look before a step counts as lost."""
        self._cursor = -1
        yield from self._pages()

    def _pages(self) -> Iterator[DagsterEvent]:
        more = True
        while more:
            page = self._instance.get_records_for_run(
                self._run_id,
                EventLogCursor.from_storage_id(self._cursor).to_string(),
                of_type=self._kinds,
                limit=PAGE,
            )
            more = page.has_more
            for record in page.records:
                self._cursor = max(self._cursor, record.storage_id)
                if record.storage_id in self._seen:
                    continue
                self._seen.add(record.storage_id)
                event = record.event_log_entry.dagster_event
                if event:
                    yield event
