"""Ctrl-C and SIGTERM, kept in one place.

Facts that force this design: a handler runs between any two instructions of the main thread, so it may take
no lock (threading.Event would); `select` goes on waiting after a handler, unless the handler made its pipe
readable; a process that is a container's first one has no default action for either signal.
"""

import contextlib
import os
import select
import signal
from types import FrameType
from typing import Any, Self, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, the first signal is only remembered; a second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        #: The signal that came, until `forget`.
        self.received: signal.Signals | None = None
        self._count = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] = (-1, -1)

    def __enter__(self) -> Self:
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[0], False)
        os.set_blocking(self._pipe[1], False)
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for end in self._pipe:
            os.close(end)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or at once when a signal has come that was not yet forgotten."""
        select.select([self._pipe[0]], [], [], seconds)

    def wait_for_input(self, stream: TextIO) -> None:
        """Return once `stream` can be read; raise KeyboardInterrupt for a signal that comes meanwhile.

        A plain read would go on waiting when the signal comes just before it.
        """
        self._drain()
        sources: list[int | TextIO] = [self._pipe[0], stream]
        ready, _, _ = select.select(sources, [], [])
        if self._pipe[0] in ready:
            raise KeyboardInterrupt

    def forget(self) -> None:
        """The signal was dealt with. The next one is still a second one: it leaves at once."""
        self.received = None
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe[0], 64)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe[1], b"!")
        if self._count > 1:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
