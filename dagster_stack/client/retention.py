"""What is older than its period: what would go, and its removal now."""

import os
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError

from dagster_stack.errors import ExitCode, RetentionFailed
from dagster_stack.retention.freed import Freed, in_mb
from dagster_stack.retention.housekeeping import retention_of_stack
from dagster_stack.retention.retention import Retention
from dagster_stack.store.connections import DEFAULT_CONNECTIONS, pooled_engine, url_from_environment
from dagster_stack.store.sqlstate import sentence

#: Seconds between two lines about how far it is.
TELL_SECS = 5
TITLES = {
    "runs": "whole runs with their outputs",
    "backfills": "backfills without runs",
    "snapshots": "snapshots of jobs that no run names",
    "remains": "what is no longer the latest of an asset",
    "details": "how steps were executed",
}


class Sums:
    """What was freed, or would be, by what it is about."""

    def __init__(self, out: TextIO, verb: str) -> None:
        self._out, self._verb = out, verb
        self._by_phase: dict[str, Freed] = {}
        self._told_at = time.monotonic()

    def add(self, phase: str, freed: Freed) -> None:
        self._by_phase.setdefault(phase, Freed()).add(freed)
        if time.monotonic() - self._told_at >= TELL_SECS:
            self._told_at = time.monotonic()
            print(f"  … {TITLES[phase]}: {self._by_phase[phase]}", file=self._out, flush=True)

    def print(self) -> None:
        some = {phase: freed for phase, freed in self._by_phase.items() if freed.anything}
        for phase, freed in some.items():
            print(f"  {self._verb} {TITLES[phase]}: {freed}", file=self._out)
        total = Freed()
        for freed in some.values():
            total.add(freed)
        size = in_mb(total.row_bytes + total.object_bytes)
        print(f"  {self._verb} {size} in all" if some else "  nothing is older than that", file=self._out)


def retain(
    out: TextIO,
    *,
    dry_run: bool,
    asks: Callable[[str], bool] | None,
    environment: Mapping[str, str] = os.environ,
) -> ExitCode:
    """Say what would go; then, unless it is a dry run, remove it. `asks` puts a question before that, if there is one.
    Raises UsageError, SettingsError and RetentionFailed."""
    engine = pooled_engine(url_from_environment(environment), DEFAULT_CONNECTIONS)
    retention = retention_of_stack(engine, environment)
    try:
        return told(out, retention, dry_run, asks)
    except (SQLAlchemyError, BotoCoreError, ClientError) as error:
        raise RetentionFailed(
            "A store does not answer, or refuses (`make status` says how they are). What was removed is removed as a whole: call"
            f" it again. The store said: {sentence(error)}"
        ) from error


def told(out: TextIO, retention: Retention, dry_run: bool, asks: Callable[[str], bool] | None) -> ExitCode:
    print(f"Retention: {retention.periods}. Looking …", file=out, flush=True)
    would = Sums(out, "would free")
    total = retention.count(would.add)
    would.print()
    if dry_run:
        return ExitCode.SUCCESS
    if asks and total.anything and not asks("Remove all that? There is no way back."):
        print("  nothing was removed", file=out)
        return ExitCode.SUCCESS
    return remove(out, retention)


def remove(out: TextIO, retention: Retention) -> ExitCode:
    print("Removing; it waits while the daemon or a backup is at work …", file=out, flush=True)
    freed = Sums(out, "freed")
    retention.run(freed.add, wait=True)
    freed.print()
    return ExitCode.SUCCESS
