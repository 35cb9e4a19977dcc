"""Facts that one process finds out for all, such as `init`: a table of names and values."""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy.engine import Engine

from dagster_stack.store.connections import patiently

#: Made by `init`.
TABLE = """
    CREATE TABLE IF NOT EXISTS dagster_stack_facts (
        name text PRIMARY KEY,
        value jsonb NOT NULL,
        noted_at timestamptz NOT NULL DEFAULT now()
    )
"""
READ = sqlalchemy.text("SELECT value FROM dagster_stack_facts WHERE name = :name")
NOTE = sqlalchemy.text(
    """
    INSERT INTO dagster_stack_facts (name, value) VALUES (:name, CAST(:value AS jsonb))
    ON CONFLICT (name) DO UPDATE SET value = excluded.value, noted_at = excluded.noted_at
    """
)
NOTE_ONCE = sqlalchemy.text(
    """
    INSERT INTO dagster_stack_facts (name, value) VALUES (:name, CAST(:value AS jsonb))
    ON CONFLICT (name) DO NOTHING RETURNING name
    """
)
COUNT = sqlalchemy.text(
    """
    INSERT INTO dagster_stack_facts (name, value) VALUES (:name, '1')
    ON CONFLICT (name) DO UPDATE SET value = to_jsonb(dagster_stack_facts.value::int + 1), noted_at = now()
    RETURNING value
    """
)
FORGET = sqlalchemy.text(
    """
    DELETE FROM dagster_stack_facts
    WHERE starts_with(name, :beginning) AND noted_at < now() - make_interval(days => :days)
    """
)


class Facts:
    """The facts of a database. Waits while it is away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, name: str) -> Any:
        """A fact's value; None when it was not noted."""
        rows = self._execute(READ, name=name)
        return rows[0][0] if rows else None

    def note(self, name: str, value: Any) -> None:
        """Keep a value, in the place of the one before."""
        self._execute(NOTE, name=name, value=json.dumps(value))

    def note_once(self, name: str, value: Any = True) -> bool:
        """Whether this is the first process to note it."""
        return bool(self._execute(NOTE_ONCE, name=name, value=json.dumps(value)))

    def count(self, name: str) -> int:
        """Add one to a number, which begins at 0; gives the new one."""
        return int(self._execute(COUNT, name=name)[0][0])

    def forget(self, beginning: str, days: int) -> None:
        """Delete facts whose names begin so, and that were noted so many days ago."""
        self._execute(FORGET, beginning=beginning, days=days)

    def _execute(self, statement: sqlalchemy.TextClause, **values: Any) -> Sequence[Any]:
        def execute() -> Sequence[Any]:
            with self._engine.connect() as connection:
                result = connection.execute(statement, values)
                return result.all() if result.returns_rows else ()

        return patiently(execute)
