"""Which run, step and task the events of this thread belong to, so that no call has to repeat it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: What events can be found by, in the order in which a line names it.
FIELDS = ("run", "step", "task")

_bound: ContextVar[Mapping[str, str] | None] = ContextVar("bound", default=None)


@contextmanager
def bound(run: str = "", step: str = "", task: str = "") -> Iterator[None]:
    """While it lasts, events of this thread carry these ids; an empty one leaves what is bound already."""
    given = {"run": run, "step": step, "task": task}
    token = _bound.set({**current(), **{name: value for name, value in given.items() if value}})
    try:
        yield
    finally:
        _bound.reset(token)


def current() -> Mapping[str, str]:
    """What is bound now, by the names in FIELDS."""
    return _bound.get() or {}


def in_context(act: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`act` with what is bound here, for another thread: threads begin with nothing."""
    return partial(copy_context().run, act)
