"""The run's view of its event log: every event once, in the order of the log, read at little cost."""

from collections.abc import Iterator

from dagster import DagsterEvent, DagsterEventType, DagsterInstance

from dagster_stack.store.event_log import News
from dagster_stack.store.ledger import ledger_of

#: Rows that one query reads at most.
PAGE = 1000


class EventTail:
    """Reads a run's Dagster events from where it stopped.

    Two writers may commit in another order than they took their rows' numbers, and leave an event behind the
    cursor. A step's success must not be seen before its outputs: Dagster would skip what waits for them. So with the
    stack's own storage each read begins where rows were settled: up to there, every transaction that could add one
    has ended. `look_back` also finds what appeared late for any other reason, and `reread` begins at the start.
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
        #: Where rows are settled; and a cursor that is once all transactions before a number have ended.
        self._settled = -1
        self._settling: tuple[int, int] | None = None

    def read(self) -> Iterator[DagsterEvent]:
        """The events that are new since the last call."""
        # However long another transaction takes, a read goes back no further than a look back.
        yield from self._pages(max(self._settled, self._marks[0]))

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
                if number in self._seen:
                    continue
                self._seen.add(number)
                self._recent.add(number)
                if event:
                    yield event

    def _page(self, after: int) -> tuple[list[tuple[int, DagsterEvent | None]], bool]:
        known = [number for number in self._recent if number > after]
        news = ledger_of(self._instance).news(self._run_id, after, known, self._kinds, PAGE)
        self._cursor = max([self._cursor, *(number for number, _ in news.events)])
        self._settle(news)
        return news.events, len(news.events) == PAGE

    def _settle(self, news: News) -> None:
        """A row before the cursor is of a transaction that had begun by now: `next` is above its number."""
        if self._settling and news.oldest >= self._settling[1]:
            self._settled, self._settling = self._settling[0], None
        if news.oldest >= news.next:
            self._settled, self._settling = self._cursor, None
        elif self._settling is None:
            self._settling = (self._cursor, news.next)


def is_end(event: DagsterEvent) -> bool:
    """Whether an attempt of a step ends with this event."""
    return event.is_step_success or event.is_step_failure or event.is_step_up_for_retry
