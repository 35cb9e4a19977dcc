"""Times of kinds of work, by themselves: what is done inside of another kind counts for the inner one alone."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any


@dataclass
class Kind:
    """How often a kind of work was begun, and its own seconds."""

    count: int = 0
    seconds: float = 0.0


@dataclass
class Stopwatch:
    """Counts what one thread does; other threads are not counted, a wait for them is where it is waited."""

    clock: Callable[[], float] = time.perf_counter
    kinds: dict[str, Kind] = field(default_factory=dict)
    #: The kinds that go on now, outermost first, each with the time from which it is to be counted on.
    _open: list[list[Any]] = field(default_factory=list)
    _thread: int = field(default_factory=threading.get_ident)

    def reset(self) -> None:
        self.kinds.clear()

    def begin(self, kind: str, counts: bool = True) -> None:
        """A kind that is begun inside of itself, or does not count, adds time alone."""
        if threading.get_ident() != self._thread:
            return
        now = self.clock()
        self._settle(now)
        nested = bool(self._open) and self._open[-1][0] == kind
        self.kinds.setdefault(kind, Kind()).count += counts and not nested
        self._open.append([kind, now])

    def end(self) -> None:
        if threading.get_ident() != self._thread:
            return
        now = self.clock()
        self._settle(now)
        self._open.pop()
        if self._open:
            self._open[-1][1] = now

    def _settle(self, now: float) -> None:
        if self._open:
            kind, since = self._open[-1]
            self.kinds.setdefault(kind, Kind()).seconds += now - since
            self._open[-1][1] = now

    @contextmanager
    def measure(self, kind: str, counts: bool = True) -> Iterator[None]:
        self.begin(kind, counts)
        try:
            yield
        finally:
            self.end()

    def wrap(self, owner: Any, name: str, kind: str | Callable[..., str], counts: bool = True) -> None:
        """Measure every call of a function that is looked up on `owner`; `kind` may depend on its arguments."""
        original = getattr(owner, name)

        @wraps(original)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(kind(*args, **kwargs) if callable(kind) else kind, counts):
                return original(*args, **kwargs)

        setattr(owner, name, measured)

    def wrap_context(self, owner: Any, name: str, kind: str) -> None:
        """Measure the begin and the end of what a function's context manager does, not what is done inside."""
        original = getattr(owner, name)

        @wraps(original)
        @contextmanager
        def measured(*args: Any, **kwargs: Any) -> Iterator[Any]:
            context: AbstractContextManager[Any] = original(*args, **kwargs)
            with self.measure(kind):
                value = context.__enter__()
            try:
                yield value
            except BaseException as error:
                with self.measure(kind, False):
                    if not context.__exit__(type(error), error, error.__traceback__):
                        raise
            else:
                with self.measure(kind, False):
                    context.__exit__(None, None, None)

        setattr(owner, name, measured)

    def wrap_generator(self, owner: Any, name: str, kind: str) -> None:
        """Measure what a generator function's generator does, not what is done between its items."""
        original = getattr(owner, name)

        @wraps(original)
        def measured(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = original(*args, **kwargs)
            first = True
            while True:
                with self.measure(kind, first):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                first = False
                yield item

        setattr(owner, name, measured)
