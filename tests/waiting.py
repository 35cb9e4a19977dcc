"""Waiting for a state with a deadline, in place of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: The pause until the next look is this part of the time waited so far, and no less than that: what is there soon is seen
#: soon, and what takes long is not disturbed.
PART, SHORTEST_SECS = 0.1, 0.02


def wait_until(
    look: Callable[[], T],
    timeout: float,
    describe: str,
    until: Callable[[T], object] = bool,
    pause: float = 0.5,
) -> T:
    """What `look` returns once `until` accepts it; fails with the last thing seen after `timeout` seconds.

    It looks often at first, later every `pause` seconds.
    """
    began = time.monotonic()
    while True:
        seen = look()
        if until(seen):
            return seen
        waited = time.monotonic() - began
        if waited > timeout:
            raise AssertionError(f"{describe}: not within {timeout:.0f} s; last seen: {seen!r}")
        time.sleep(min(pause, max(SHORTEST_SECS, PART * waited)))
