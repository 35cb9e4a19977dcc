"""What Postgres says of this moment: runs, backfills, daemons, slots, its own size. Read anew for each scrape."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy.engine import Connection

#: Statuses of runs that have not ended; those that they end in are counted as they end (counters.py).
OPEN_STATUSES = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
#: The same of backfills.
OPEN_BACKFILLS = ("REQUESTED", "CANCELING", "FAILING")
#: Seconds back that failed ticks of schedules and sensors are counted.
TICKS_SECS = 3600


@dataclass(frozen=True)
class Question:
    """A query whose rows are a gauge: the value in the last column, the labels in the others."""

    name: str
    help: str
    labels: list[str]
    statement: str

    def answer(self, connection: Connection) -> GaugeMetricFamily:
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        rows = connection.execute(
            sqlalchemy.text(self.statement),
            {"states": list(OPEN_STATUSES), "backfills": list(OPEN_BACKFILLS), "ticks": TICKS_SECS},
        )
        for *labels, value in rows:
            family.add_metric([str(label) for label in labels], float(value or 0))
        return family


#: They stand in a file beside this one.
QUESTIONS = tuple(
    Question(**entry)
    for entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["gauge"]
)


def figures(connection: Connection) -> Iterator[GaugeMetricFamily]:
    """All of them. Raises SQLAlchemy's errors."""
    return (question.answer(connection) for question in QUESTIONS)
