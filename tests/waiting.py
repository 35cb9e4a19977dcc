"""Waiting for a state with a deadline, in place of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    look: Callable[[], T],
    timeout: float,
    describe: str,
    until: Callable[[T], object] = bool,
    pause: float = 0.5,
) -> T:
    """What `look` returns once `until` accepts it; fails with the last thing seen after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if until(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"{describe}: not within {timeout:.0f} s; last seen: {seen!r}")
        time.sleep(pause)
