"""Errors as SQLAlchemy raises them: of Dagster's database, and of one that user code has."""

from typing import NoReturn, TypeVar

import sqlalchemy
from sqlalchemy.exc import DBAPIError, OperationalError

from dagster_stack.store.sqlstate import note

Error = TypeVar("Error", bound=DBAPIError)


def noted(error: Error) -> Error:
    """An error that an engine of Dagster's database has raised."""
    note(error, is_sent=True)
    return error


AWAY = noted(OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly")))


def ask_warehouse() -> NoReturn:
    """User code whose own database is away."""
    sqlalchemy.create_engine("postgresql://user:secret@127.0.0.1:1/warehouse").connect()
    raise AssertionError("it is there")
