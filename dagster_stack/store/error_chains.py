"""Errors as the event log keeps them: of a long chain the first ones, of a long text its beginning, a group with its members."""

from collections.abc import Callable, Iterator
from traceback import TracebackException
from typing import Any

from dagster_shared.error import SerializableErrorInfo

from dagster_stack.patches.dagster import ERROR_FROM_TRACEBACK
from dagster_stack.texts import MOST_TEXT, cut

#: Errors, one the cause of the other, that are kept. Dagster follows them by recursion, which a thousand exhaust.
MOST_CAUSES = 20
#: Members of a group that are kept, of each its last so many frames.
MOST_MEMBERS = 10

#: Called with the message of each error; what they return is added to it.
explanations: list[Callable[[str], str | None]] = []

_by_dagster = ERROR_FROM_TRACEBACK.found()


def use_in_dagster() -> None:
    """Let Dagster, in this process, keep no more of any error."""
    ERROR_FROM_TRACEBACK.replace(_from_traceback)


def _from_traceback(error: TracebackException) -> SerializableErrorInfo:
    shorten(error)
    found: SerializableErrorInfo = _by_dagster(error)
    for explain in explanations:
        if explanation := explain(found.message[:MOST_TEXT]):
            found = found._replace(message=f"{cut(found.message, MOST_TEXT).rstrip()}\n{explanation}\n")
    if len(found.message) > MOST_TEXT:
        # Dagster would cut it too, without its length.
        found = found._replace(message=cut(found.message, MOST_TEXT))
    return found


def shorten(error: TracebackException) -> None:
    """Leave out what is too deep in the chain, and say so; the members of a group become part of its text."""
    waiting = [(error, 1)]
    while waiting:
        one, depth = waiting.pop()
        if one.exceptions:
            _add_note(one, "".join(_members(one)))
            one.exceptions = None
        if depth >= MOST_CAUSES and (left_out := sum(1 for _ in _chain(one)) - 1):
            _add_note(one, f"({left_out:,} more errors that led to this one are left out)")
            one.__cause__ = one.__context__ = None
        waiting += [(each, depth + 1) for each in (one.__cause__, one.__context__) if each]


def _chain(error: TracebackException) -> Iterator[TracebackException]:
    waiting = [error]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += [each for each in (one.__cause__, one.__context__) if each]


def _members(group: TracebackException) -> Iterator[str]:
    members = group.exceptions or []
    for number, each in enumerate(members[:MOST_MEMBERS], 1):
        shorten(each)
        yield f"\nMember {number} of {len(members)}:\n" + "".join(each.format())
    if len(members) > MOST_MEMBERS:
        yield f"\n({len(members) - MOST_MEMBERS:,} more members are left out)"


def _add_note(error: TracebackException, note: str) -> None:
    notes: Any = getattr(error, "__notes__", None)
    error.__notes__ = [*(notes if isinstance(notes, list) else []), note]
