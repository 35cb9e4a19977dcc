"""Who did what in Dagit: a row for each mutation, and the tag of runs that a person launches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from dagster._core.storage.tags import USER_TAG
from sqlalchemy.engine import Engine

from dagster_stack.store.connections import patient_connection
from dagster_stack.texts import cut, shown

#: Characters of a text in a row.
MOST_TEXT = 500
#: Rows that one statement deletes.
BATCH = 1000

#: Made by `init`.
TABLE = """
    CREATE TABLE IF NOT EXISTS dagster_stack_audit (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT now(),
        user_name text NOT NULL,
        role text NOT NULL,
        address text NOT NULL,
        operation text NOT NULL,
        target text NOT NULL,
        allowed boolean NOT NULL
    )
"""
INDEX = "CREATE INDEX IF NOT EXISTS dagster_stack_audit_at ON dagster_stack_audit (at)"
RECORD = sqlalchemy.text(
    """
    INSERT INTO dagster_stack_audit (user_name, role, address, operation, target, allowed)
    VALUES (:user, :role, :address, :operation, :target, :allowed)
    """
)
READ = sqlalchemy.text(
    """
    SELECT user_name, role, address, operation, target, allowed, at FROM dagster_stack_audit
    WHERE (CAST(:user AS text) IS NULL OR user_name = :user)
        AND (CAST(:since AS timestamptz) IS NULL OR at >= :since)
    ORDER BY at DESC, id DESC LIMIT :limit
    """
)
FORGET = sqlalchemy.text(
    """
    DELETE FROM dagster_stack_audit WHERE id IN (
        SELECT id FROM dagster_stack_audit WHERE at < now() - make_interval(days => :days) ORDER BY at LIMIT :batch
    )
    """
)

#: The user whose request this thread, or task, answers.
_user: ContextVar[str | None] = ContextVar("user", default=None)


@dataclass(frozen=True)
class Deed:
    """What a user did, or was not allowed to."""

    user: str
    role: str
    address: str
    operation: str
    target: str
    allowed: bool
    #: When it was recorded, by the database's clock.
    at: datetime | None = None


class Audit:
    """The audit of a database. Waits while it is away, then raises SQLAlchemy's error."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, deed: Deed) -> None:
        texts = ("user", "role", "address", "operation", "target")
        values: dict[str, Any] = {name: cut(shown(getattr(deed, name)), MOST_TEXT) for name in texts}
        with patient_connection(self._engine) as connection:
            connection.execute(RECORD, {**values, "allowed": deed.allowed})

    def deeds(
        self, user: str | None = None, since: datetime | None = None, limit: int | None = None
    ) -> Sequence[Deed]:
        """The newest ones, the oldest of these first."""
        with patient_connection(self._engine) as connection:
            rows = connection.execute(READ, {"user": user, "since": since, "limit": limit}).all()
        return [Deed(*row) for row in reversed(rows)]

    def forget(self, days: int) -> None:
        """Delete what is older, a few rows at a time."""
        deleted = BATCH
        while deleted == BATCH:
            with patient_connection(self._engine) as connection:
                deleted = connection.execute(FORGET, {"days": days, "batch": BATCH}).rowcount


@contextmanager
def acting_for(user: str) -> Iterator[None]:
    """What this thread, or task, makes meanwhile was asked for by a user."""
    token = _user.set(user)
    try:
        yield
    finally:
        _user.reset(token)


def with_user(tags: Mapping[str, str]) -> Mapping[str, str]:
    """A run's or backfill's tags; of one that a user asks for with their name in Dagster's own tag, whatever they say."""
    user = _user.get()
    return tags if user is None else {**tags, USER_TAG: user}
