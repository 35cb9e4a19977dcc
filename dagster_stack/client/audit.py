"""Who did what in Dagit, as a table or JSON, from the stack's Postgres."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from dagster_stack.client.display import printable
from dagster_stack.client.workers import PLAIN_WIDTH
from dagster_stack.errors import DatabaseUnreachable, ExitCode, UsageError
from dagster_stack.store.audit import Audit, Deed
from dagster_stack.store.connections import (
    DEFAULT_CONNECTIONS,
    impatience,
    pooled_engine,
    url_from_environment,
)
from dagster_stack.store.sqlstate import sentence

#: Rows that are shown when no time is given.
NEWEST = 100
DURATION = re.compile(r"(?:(\d{1,6})w)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?")
UNITS = ("weeks", "days", "hours", "minutes", "seconds")
NOTHING = "Nobody did anything that is on record: it is kept where people log in (LOGIN=on in .env)."


def show_audit(
    out: TextIO,
    user: str | None,
    since: str | None,
    *,
    as_json: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> ExitCode:
    """Print what is on record; raises UsageError or DatabaseUnreachable."""
    begin = time_of(since) if since else None
    engine = pooled_engine(url_from_environment(environment), DEFAULT_CONNECTIONS)
    try:
        with impatience():
            # One more tells whether there are more.
            found = Audit(engine).deeds(user, begin, None if begin else NEWEST + 1)
    except SQLAlchemyError as error:
        raise DatabaseUnreachable(
            f"Postgres does not tell: {sentence(error)}. `make up` starts the stack."
        ) from error
    are_more = not begin and len(found) > NEWEST
    found = found[-NEWEST:] if are_more else found
    if as_json:
        print(json.dumps([as_object(deed) for deed in found], indent=2), file=out)
    elif found:
        console = Console(file=out, highlight=False, width=None if out.isatty() else PLAIN_WIDTH)
        console.print(table(found))
        if are_more:
            print(f"\nThese are the newest {NEWEST}: make audit SINCE=30d", file=out)
    else:
        print(NOTHING if not (user or since) else "Nothing of that is on record.", file=out)
    return ExitCode.SUCCESS


def time_of(text: str, now: datetime | None = None) -> datetime:
    """The time that is meant by `10m`, `1h30m`, `3d` or `2w` ago, or by a date or time, in UTC unless it says else."""
    if text and (match := DURATION.fullmatch(text)):
        ago = timedelta(
            **{unit: int(number) for unit, number in zip(UNITS, match.groups(), strict=True) if number}
        )
        try:
            return (now or datetime.now(UTC)) - ago
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"SINCE={text!r} is no time: say 10m, 2h, 3d, or 2026-11-29, or 2026-11-29T14:00."
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def as_object(deed: Deed) -> dict[str, Any]:
    return {**asdict(deed), "at": deed.at.astimezone(UTC).isoformat() if deed.at else None}


def table(found: Sequence[Deed]) -> Table:
    """For people; times are UTC."""
    content = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    content.add_column("WHEN (UTC)", no_wrap=True)
    for title in ("USER", "ROLE", "FROM", "WHAT", "OF"):
        content.add_column(title, overflow="fold")
    content.add_column("", no_wrap=True)
    for deed in found:
        at = deed.at.astimezone(UTC) if deed.at else None
        texts = (deed.user, deed.role, deed.address, deed.operation, deed.target)
        content.add_row(
            f"{at:%Y-%m-%d %H:%M:%S}",
            *(Text(" ".join(printable(text).split())) for text in texts),
            Text("" if deed.allowed else "refused", style="" if deed.allowed else "bold red"),
        )
    return content
