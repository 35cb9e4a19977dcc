"""Which runs may go: groups of runs that belong together, each as a whole.

A run belongs to those that execute it again, or that it executes again, and to those of its backfill.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from dagster_stack.retention.details import ended_runs
from dagster_stack.retention.session import Pace, transaction
from dagster_stack.store.doomed import DOOM, LOCK
from dagster_stack.store.statements import statements

_SQL = statements(__file__)
KIN, OPEN_BACKFILLS, WANTED, DOOM_RUNS = _SQL["kin"], _SQL["open_backfills"], _SQL["wanted"], _SQL["doom"]


@dataclass(frozen=True)
class Relative:
    """A run with what ties it to others: the first run of those that execute it again, and its backfill."""

    run_id: str
    root: str
    backfill: str | None
    #: Whether it ended long enough ago.
    is_old: bool

    @property
    def ties(self) -> list[str]:
        return [
            f"run {self.root}",
            f"run {self.run_id}",
            *([f"backfill {self.backfill}"] if self.backfill else []),
        ]


@dataclass
class Group:
    """Runs of which all go or none."""

    members: list[Relative] = field(default_factory=list)

    @property
    def runs(self) -> list[str]:
        return [each.run_id for each in self.members]

    @property
    def backfills(self) -> set[str]:
        return {each.backfill for each in self.members if each.backfill}

    def may_go(self, wanted: Collection[str], open_backfills: Collection[str]) -> bool:
        return (
            all(each.is_old for each in self.members)
            and self.backfills.isdisjoint(open_backfills)
            and not any(each.run_id in wanted for each in self.members)
        )


def old_groups(connection: Connection, before: float, pace: Pace) -> Iterator[list[str]]:
    """The runs of some groups at a time that may go, since all of each ended before a moment."""
    seen: set[str] = set()
    for found, _ in ended_runs(connection, before):
        runs = [run for run in found if run not in seen]
        if not runs:
            continue
        with transaction(connection):
            going, looked_at = going_of(connection, runs, before)
        seen |= looked_at
        if going:
            yield going
        pace.pause()


def going_of(connection: Connection, runs: Sequence[str], before: float) -> tuple[list[str], set[str]]:
    """Of the groups of some runs, the runs of those that may go; and all that was looked at."""
    found = relatives(connection, runs, before)
    every = {"runs": [each.run_id for each in found]}
    wanted = {row[0] for row in connection.execute(WANTED, every)} if found else set()
    backfills = list({each.backfill for each in found if each.backfill})
    still_open = {row[0] for row in connection.execute(OPEN_BACKFILLS, {"backfills": backfills})}
    going = [run for group in grouped(found) if group.may_go(wanted, still_open) for run in group.runs]
    return going, set(every["runs"])


def relatives(connection: Connection, runs: Sequence[str], before: float) -> list[Relative]:
    """These runs and all that belong to them, however far away."""
    known: dict[str, Relative] = {}
    asked_roots: set[str] = set()
    asked_backfills: set[str] = set()
    roots, backfills = set(runs), set[str]()
    while roots or backfills:
        values = {"runs": list(runs), "roots": list(roots), "backfills": list(backfills), "before": before}
        for row in connection.execute(KIN, values):
            known.setdefault(row[0], Relative(*row))
        asked_roots |= roots
        asked_backfills |= backfills
        roots = {name for each in known.values() for name in (each.root, each.run_id)} - asked_roots
        backfills = {each.backfill for each in known.values() if each.backfill} - asked_backfills
    return list(known.values())


def grouped(found: Collection[Relative]) -> list[Group]:
    """Runs by what ties them together."""
    leads: dict[str, str] = {}

    def end(tie: str) -> str:
        while (lead := leads.setdefault(tie, tie)) != tie:
            leads[tie] = leads[lead]
            tie = lead
        return tie

    for each in found:
        for tie in each.ties:
            leads[end(tie)] = end(each.ties[0])
    groups: dict[str, Group] = {}
    for each in found:
        groups.setdefault(end(each.ties[0]), Group()).members.append(each)
    return list(groups.values())


def doom(connection: Connection, runs: Sequence[str], before: float) -> list[str]:
    """Note that these runs go, if they still may: from now on no other run may follow on them. Returns those that go."""
    with transaction(connection, durable=True):
        connection.execute(LOCK, {"name": DOOM})
        # One may have been executed again meanwhile.
        still, _ = going_of(connection, runs, before)
        going = sorted(set(still) & set(runs))
        connection.execute(DOOM_RUNS, {"runs": going})
    return going
