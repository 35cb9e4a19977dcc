"""What is new in the event log since the last look, of the kinds of events that are counted.

Each look reads by the log's primary key from where the last one stopped, so that it costs the same with a million
events as with a thousand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy.engine import Connection

from dagster_stack.failure_reasons import LABEL

#: Events that are counted, and what their ends are called.
RUN_ENDS = {"PIPELINE_SUCCESS": "success", "PIPELINE_FAILURE": "failure", "PIPELINE_CANCELED": "canceled"}
STEP_ENDS = {"STEP_SUCCESS": "success", "STEP_FAILURE": "failure", "STEP_UP_FOR_RETRY": "retry"}
SENT, TAKEN = "STEP_WORKER_STARTING", "STEP_WORKER_STARTED"
#: The second one is of attempts after the first.
STARTED = ("STEP_START", "STEP_RESTARTED")
ENQUEUED, RUN_STARTED = "PIPELINE_ENQUEUED", "PIPELINE_START"
KINDS = (*RUN_ENDS, *STEP_ENDS, SENT, TAKEN, *STARTED, ENQUEUED, RUN_STARTED)

#: Rows that one query reads at most.
PAGE = 5000
#: Runs whose whole past one query reads.
RUNS_AT_ONCE = 20
#: Rows before the last one, at the begin, of which some may not be visible yet.
LATE_ROWS = 1000
#: Seconds that a row may become visible later than one with a higher number, at least: so long a look reads again.
LATE_SECS = 10

#: An event is large, its error above all: of its metadata, the text with a label. Here Postgres is quicker by an
#: expression than by making JSON of all of it.
TEXT = """substring(log.event FROM '"text": "([^"]*)"}}, "label": "{}"')"""
READ = f"""
    SELECT log.id, log.run_id, runs.pipeline_name, log.step_key, log.dagster_event_type,
        extract(epoch FROM log.timestamp),
        CASE log.dagster_event_type
            WHEN '{SENT}' THEN {TEXT.format("queue")}
            WHEN 'STEP_FAILURE' THEN {TEXT.format(LABEL)}
        END
    FROM event_logs AS log JOIN runs ON runs.run_id = log.run_id
    WHERE log.dagster_event_type = ANY(CAST(:kinds AS text[]))
"""
NEWS = sqlalchemy.text(
    f"{READ} AND log.id > :after AND NOT log.id = ANY(CAST(:known AS bigint[])) ORDER BY log.id LIMIT :limit"
)
#: Without a limit, with which Postgres would walk through the whole log by its primary key.
PAST = sqlalchemy.text(
    f"{READ} AND log.id <= :last AND log.run_id = ANY(CAST(:runs AS text[])) ORDER BY log.id"
)
#: What is behind the last row, and visible.
VISIBLE = sqlalchemy.text("SELECT id FROM event_logs WHERE id > :after AND id <= :last")
LAST = sqlalchemy.text("SELECT coalesce(max(id), 0) FROM event_logs")


@dataclass(frozen=True)
class LogRow:
    """An event as it is read: `at` in seconds since 1970, `said` the queue or the reason in its metadata."""

    number: int
    run_id: str
    job: str
    step: str | None
    kind: str
    at: float
    said: str | None = None


class EventReader:
    """Hands out each event of the log once, from the moment of `begin` on."""

    def __init__(self) -> None:
        #: Two ends of looks that are LATE_SECS apart, and what was read beyond the older one: rows become visible in
        #: another order than that of their numbers.
        self._marks: tuple[int, int] | None = None
        self._marked_at = 0.0
        self._recent: set[int] = set()

    def has_begun(self, connection: Connection) -> bool:
        """Whether `news` can go on; not in a log that was replaced by an older one, such as a backup."""
        return self._marks is not None and int(connection.execute(LAST).scalar_one()) >= self._marks[0]

    def begin(self, connection: Connection, runs: list[str], now: float) -> Iterator[LogRow]:
        """What these runs have behind them; `news` follow on it. Raises SQLAlchemy's errors: begin anew then."""
        self._marks, self._recent = None, set()
        last = int(connection.execute(LAST).scalar_one())
        for first in range(0, len(runs), RUNS_AT_ONCE):
            yield from read(connection, PAST, last=last, runs=runs[first : first + RUNS_AT_ONCE])
        after = max(0, last - LATE_ROWS)
        self._recent = {number for (number,) in connection.execute(VISIBLE, {"after": after, "last": last})}
        self._marks, self._marked_at = (after, last), now

    def news(self, connection: Connection, now: float) -> Iterator[LogRow]:
        """What was not handed out so far. Raises SQLAlchemy's errors, and goes on where it was after them."""
        assert self._marks, "begin first"
        older, last = self._marks[0], max(self._recent, default=self._marks[1])
        while True:
            events = read(connection, NEWS, after=older, known=list(self._recent), limit=PAGE)
            for event in events:
                self._recent.add(event.number)
                last = max(last, event.number)
                yield event
            if len(events) < PAGE:
                break
        if now - self._marked_at >= LATE_SECS:
            self._marks, self._marked_at = (self._marks[1], last), now
            self._recent = {number for number in self._recent if number > self._marks[0]}


def read(connection: Connection, statement: sqlalchemy.TextClause, **values: Any) -> list[LogRow]:
    found = connection.execute(statement, {**values, "kinds": list(KINDS)})
    return [
        LogRow(number, run, job, step, kind, float(at), said)
        for number, run, job, step, kind, at, said in found
    ]
