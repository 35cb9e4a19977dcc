"""What an error of Postgres asks for: wait, try again, or let the work fail. By SQLSTATE, in one table.

The codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from collections.abc import Iterator
from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError, TimeoutError

from dagster_stack.texts import shown


class Kind(Enum):
    """What is to be done about an error."""

    #: The server is gone, full, or read-only: wait, then do the same again.
    AWAY = auto()
    #: Another transaction was in the way: the same again, at once.
    AGAIN = auto()
    #: What was asked for can't be done, or takes too long: the work fails with Postgres's sentence.
    WRONG = auto()


#: The longest beginning of a code that is found here decides. All else is WRONG.
KINDS = {
    # Connection exception.
    "08": Kind.AWAY,
    # A read-only server: what a failover leaves of the former primary, or an operator has set.
    "25006": Kind.AWAY,
    # Its transaction was idle for too long, as that of a process that was frozen: the server has ended the connection.
    "25P03": Kind.AWAY,
    "25P04": Kind.AWAY,
    # Another transaction was in the way: serialisation, deadlock. Not a constraint (40002).
    "40": Kind.AGAIN,
    "40002": Kind.WRONG,
    # It is unknown whether it was done.
    "40003": Kind.AWAY,
    # Insufficient resources: disk full, out of memory, too many connections.
    "53": Kind.AWAY,
    # An operator's lock_timeout has passed.
    "55P03": Kind.AGAIN,
    # Operator intervention: shutting down, crashed, starting up. Not a statement that took too long (57014).
    "57P": Kind.AWAY,
    # System error: the disk can't be read or written.
    "58": Kind.AWAY,
    "72": Kind.AGAIN,
}
#: Codes of errors that may come after the statement was executed. With all others it was not.
UNCERTAIN = ("08", "40003", "57")
#: Postgres answers so while a session lives, also when the name of its host leads to another server by now.
READ_ONLY = "25006"

#: The mark of errors of Dagster's database: user code may have a database of its own.
OURS, NOT_SENT = "dagster_stack_ours", "dagster_stack_not_sent"


def kind_of(error: BaseException) -> Kind | None:
    """What to do about an error of Dagster's database, or one that it caused; None for any other error."""
    found = of_database(error)
    if found is None:
        return None
    if isinstance(found, TimeoutError):
        # All connections of this process wait for the server.
        return Kind.AWAY
    code = code_of(found)
    if code:
        beginnings = (code[:length] for length in (5, 3, 2))
        return next((KINDS[each] for each in beginnings if each in KINDS), Kind.WRONG)
    # Without an answer: no connection, or one that broke.
    broken = isinstance(found, DBAPIError) and found.connection_invalidated
    return Kind.AWAY if broken or isinstance(found, OperationalError) else Kind.WRONG


def is_away(error: BaseException) -> bool:
    """Whether the server is gone, full or read-only: what was to be done is done when it is back."""
    return kind_of(error) is Kind.AWAY


def is_undone(error: BaseException) -> bool:
    """Whether certainly nothing was done: a write may be tried again too."""
    found = of_database(error)
    if found is None:
        return False
    code = code_of(found)
    return not code.startswith(UNCERTAIN) if code else getattr(found, NOT_SENT)


def is_refusal(error: BaseException) -> bool:
    """Whether a value is wrong for Postgres: told by it, or by the driver, which takes no NUL and no half character."""
    return kind_of(error) is Kind.WRONG or isinstance(error, ValueError)


def sentence(error: BaseException) -> str:
    """What Postgres says, without the statement and its values."""
    return shown(str(getattr(error, "orig", None) or error).strip())


def note(error: BaseException, *, is_sent: bool) -> None:
    """Mark an error as one of Dagster's database, and whether the statement may have come there."""
    setattr(error, OURS, True)
    setattr(error, NOT_SENT, not is_sent)


def of_database(error: BaseException) -> SQLAlchemyError | None:
    """The error of Dagster's database that an error is, or was caused by."""
    ours = (each for each in chain(error) if isinstance(each, SQLAlchemyError) and getattr(each, OURS, False))
    return next(ours, None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: set[int] = set()
    while error and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def code_of(error: SQLAlchemyError) -> str:
    """The SQLSTATE; empty when the server has not answered."""
    return getattr(getattr(error, "orig", None), "pgcode", None) or ""
