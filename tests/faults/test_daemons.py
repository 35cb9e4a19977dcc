"""Two daemons: the one that leads is killed, frozen, cut off from Postgres; no tick, run key or launch is lost or doubled."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.faults import faults
from tests.faults.faults import Fault
from tests.faults.grounds import LOCATION, Grounds
from tests.stack.stack import Stack
from tests.stack.ticks import AWAY_SECS, TAKEN_OVER_SECS, Ticks, leader, wait_for_another
from tests.waiting import wait_until


def killed(container: str) -> Fault:
    """One that Docker starts again only afterwards."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        stack.docker("kill", container)
        try:
            yield
        finally:
            stack.docker("start", container)

    return Fault("daemon killed", "daemon", inject)


@pytest.fixture(scope="module")
def two(grounds: Grounds) -> Iterator[Stack]:
    """The stack with two daemons, of which one leads."""
    stack = grounds.stack
    daemons = ("up", "--detach", "--no-deps", "--wait", "daemon")
    several = replace(stack, shell={"DAEMONS": "2"})
    try:
        several.compose(*daemons)
        wait_until(lambda: leader(stack), 90, "a daemon leads")
        yield stack
    finally:
        stack.compose(*daemons)
        wait_until(
            lambda: faults.running(stack, "daemon"), 60, "one daemon", until=lambda found: len(found) == 1
        )
        stack.wait_until_healthy("daemon")


def take_over(ticks: Ticks, fault: Fault, former: str) -> float:
    """Seconds until another daemon leads, once a fault has come to the one that did; afterwards it is over."""
    with fault.inject(ticks.stack):
        began = time.monotonic()
        wait_for_another(ticks.stack, former, 2 * TAKEN_OVER_SECS)
        took = time.monotonic() - began
        # The fault lasts for as long as it takes to have ticks without it.
        ticks.wait_for_more(AWAY_SECS)
    return took


def wait_until_started(stack: Stack, container: str, before: str) -> None:
    """Until a container was started again, and is healthy."""
    wait_until(
        lambda: stack.inspect(container)["State"], 120, f"{container} stands by",
        until=lambda state: state["StartedAt"] != before and state["Health"]["Status"] == "healthy",
    )  # fmt: skip


def test_no_tick_is_lost_or_doubled_whatever_becomes_of_the_leader(two: Stack) -> None:
    # Given a sensor that counts, and a schedule of each minute
    ticks = Ticks(two, LOCATION)
    first = ticks.start()

    # When the daemon that leads is killed, frozen, and cut off from Postgres, one after the other, and each time comes back
    took = {}
    for how in ("killed", "frozen", "cut off"):
        former = wait_until(lambda: leader(two), 60, "a daemon leads")
        fault = {
            "killed": killed(former),
            "frozen": faults.paused("daemon", AWAY_SECS, former),
            "cut off": faults.cut_off("daemon", "database", AWAY_SECS, former),
        }[how]
        started = two.inspect(former)["State"]["StartedAt"]
        took[how] = take_over(ticks, fault, former)
        # The former one ends itself, and stands by again.
        wait_until_started(two, former, started)
    # And one stops by itself
    former = leader(two)
    began = time.monotonic()
    two.docker("restart", former)
    wait_for_another(two, former, 60)
    took["restarted"] = time.monotonic() - began

    # Then another one led soon
    print({how: f"{secs:.1f} s" for how, secs in took.items()})
    assert max(took.values()) < TAKEN_OVER_SECS, took
    # And no tick was lost or doubled
    ticks.stop()
    ticks.require_each_once(first)
