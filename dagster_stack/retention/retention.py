"""One pass of retention: what is older than its period goes, and is counted."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy.engine import Connection, Engine

from dagster_stack.retention.details import count_details, remove_details
from dagster_stack.retention.freed import Freed
from dagster_stack.retention.groups import doom, old_groups
from dagster_stack.retention.outputs import Outputs
from dagster_stack.retention.periods import Periods
from dagster_stack.retention.removal import Removal
from dagster_stack.retention.session import Pace, alone, is_awaited
from dagster_stack.retention.snapshots import Snapshots
from dagster_stack.store.facts import Facts

logger = logging.getLogger(__name__)

DAY_SECS = 24 * 3600
#: The fact about the last pass, and the one with all that was ever freed.
LAST, TOTAL = "retention.last", "retention.total"

Told = Callable[[str, Freed], object]


@dataclass
class Retention:
    """What goes from a database and a bucket, which is None where there is none, after how many days."""

    engine: Engine
    outputs: Outputs | None
    periods: Periods
    pace: Pace = field(default_factory=Pace)
    snapshots: Snapshots = field(default_factory=Snapshots)
    #: Whether the last pass came to its end, or has made way for a backup before.
    is_done: bool = True

    def run(self, told: Told = lambda phase, freed: None, *, wait: bool = False) -> Freed | None:
        """One pass; None: another one, or a backup, is at work. `told` gets each batch, with what it is about.

        It makes way for who waits for the lock; with `wait` it goes on after that.
        """
        freed, began, facts = Freed(), time.monotonic(), Facts(self.engine)
        self.is_done = False
        try:
            while not self.is_done:
                with alone(self.engine, wait=wait) as connection:
                    if connection is None:
                        return None
                    self.is_done = self._pass(connection, facts, freed, told)
                if not wait:
                    break
        except Exception as error:
            self._note(facts, freed, time.monotonic() - began, type(error).__name__)
            raise
        self._note(facts, freed, time.monotonic() - began)
        return freed

    def _pass(self, connection: Connection, facts: Facts, freed: Freed, told: Told) -> bool:
        """Whether it came to its end."""
        for phase, some in self._remove(connection, facts):
            freed.add(some)
            told(phase, some)
            if is_awaited(connection):
                return False
        return True

    def count(self, told: Told = lambda phase, freed: None) -> Freed:
        """What a pass would free now, but for snapshots."""
        facts, freed = Facts(self.engine), Freed()
        with self.engine.connect() as connection:
            for phase, some in self._count(connection, facts):
                freed.add(some)
                told(phase, some)
        return freed

    def _remove(self, connection: Connection, facts: Facts) -> Iterator[tuple[str, Freed]]:
        removal = Removal(connection, self.outputs, self.pace)
        # What the last pass did not get to, whatever the period is now.
        yield from (("runs", freed) for freed in removal.of_doomed())
        if self.periods.runs:
            before = self._before(self.periods.runs)
            for runs in old_groups(connection, before, self.pace):
                doom(connection, runs, before)
                yield from (("runs", freed) for freed in removal.of_doomed())
            yield from (("backfills", freed) for freed in removal.of_backfills(before))
        yield "snapshots", self.snapshots.remove(connection, self.pace)
        yield from (("remains", freed) for freed in removal.of_remains())
        if self.periods.details:
            details = remove_details(connection, facts, self._before(self.periods.details), self.pace)
            yield from (("details", freed) for freed in details)

    def _count(self, connection: Connection, facts: Facts) -> Iterator[tuple[str, Freed]]:
        removal, going = Removal(connection, self.outputs, self.pace), set[str]()
        if self.periods.runs:
            before = self._before(self.periods.runs)
            for runs in old_groups(connection, before, self.pace):
                going |= set(runs)
                yield from (("runs", freed) for freed in removal.count(runs))
            yield "backfills", removal.count_backfills(before)
        if self.periods.details:
            details = count_details(connection, facts, self._before(self.periods.details), self.pace, going)
            yield from (("details", freed) for freed in details)

    @staticmethod
    def _before(days: int) -> float:
        return time.time() - days * DAY_SECS

    @staticmethod
    def _note(facts: Facts, freed: Freed, seconds: float, error: str | None = None) -> None:
        total = Freed(**(facts.read(TOTAL) or {}))
        total.add(freed)
        facts.note(TOTAL, total.to_json())
        at = datetime.now(UTC).timestamp()
        facts.note(LAST, {"at": at, "seconds": round(seconds, 1), "error": error, **freed.to_json()})
