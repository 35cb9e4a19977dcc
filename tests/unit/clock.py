"""A clock that only moves when somebody waits, in place of the `time` module of a module under test."""

import pytest
from dagster._core.execution.plan import active, instance_concurrency_context

from dagster_stack.messaging import run_connection as broker
from dagster_stack.run import dispatch, run_loop, termination

START = 1000.0


class Clock:
    """What `time` offers to code that waits: `sleep` returns at once, and the clock is later then.

    Like the real one `monotonic` starts anywhere and never goes back. Who waits for half an hour waits
    for ever.
    """

    def __init__(self) -> None:
        self.now = START

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
        assert self.now < START + 1800, "something is waited for that never comes"

    def set_for_run(self, monkeypatch: pytest.MonkeyPatch) -> "Clock":
        """All modules that drive a run look at this clock."""
        for module in (run_loop, dispatch, broker, termination, active, instance_concurrency_context):
            monkeypatch.setattr(module, "time", self)
        return self
