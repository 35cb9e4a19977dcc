"""Two daemons: the one that leads is killed, frozen, cut off from Postgres; no tick, run key or launch is lost or doubled."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.faults import faults
from tests.faults.faults import Fault
from tests.faults.grounds import LOCATION, Grounds
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: The promise.
TAKEN_OVER_SECS = 20
#: Longer than a lease lasts without a renewal.
AWAY_SECS = 40
MINUTE_SECS = 60
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
SENSOR = {**REPOSITORY, "sensorName": "counting"}
SCHEDULE = {**REPOSITORY, "scheduleName": "minutely"}
START = """
mutation Start($sensor: SensorSelector!, $schedule: ScheduleSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message } ... on Sensor { id } }
  startSchedule(scheduleSelector: $schedule) { __typename ... on PythonError { message } }
}
"""
STOP = """
mutation Stop($sensor: String!, $schedule: String!) {
  stopSensor(id: $sensor) { __typename ... on PythonError { message } }
  stopRunningSchedule(id: $schedule) { __typename ... on PythonError { message } }
}
"""
STATES = """
query States($sensor: SensorSelector!, $schedule: ScheduleSelector!) {
  sensorOrError(sensorSelector: $sensor) { ... on Sensor { id } }
  scheduleOrError(scheduleSelector: $schedule) { ... on Schedule { id } }
}
"""
LEADER = """
SELECT holder FROM dagster_stack_claims WHERE run_id = 'daemons' AND beat_at > now() - interval '15 s'
"""
#: How often each run that a tick asked for was started.
LAUNCHES = """
SELECT runs.run_id, count(event_logs.id) FROM runs
LEFT JOIN event_logs ON event_logs.run_id = runs.run_id AND dagster_event_type = 'PIPELINE_STARTING'
WHERE pipeline_name = 'ticked' GROUP BY 1
"""


def tags(stack: Stack, key: str) -> Counter[str]:
    """How many runs there are with each value of a tag."""
    rows = stack.sql(f"SELECT value FROM run_tags WHERE key = '{key}'")
    return Counter(value for (value,) in rows)


def scheduled(stack: Stack) -> Counter[int]:
    """How many runs, and how many ticks, there are of each minute."""
    rows = stack.sql("SELECT extract(epoch FROM timestamp)::bigint FROM job_ticks WHERE type = 'SCHEDULE'")
    return Counter(int(at) // MINUTE_SECS for (at,) in rows)


def leader(stack: Stack) -> str:
    """The container of the daemon that leads; empty while there is none."""
    rows = stack.sql(LEADER)
    host = rows[0][0].removeprefix("daemon@") if rows else ""
    found = [name for name in faults.running(stack, "daemon") if host and hostname(stack, name) == host]
    return found[0] if found else ""


def hostname(stack: Stack, container: str) -> str:
    return str(stack.inspect(container)["Config"]["Hostname"])


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


def take_over(stack: Stack, fault: Fault, former: str) -> float:
    """Seconds until another daemon leads, once a fault has come to the one that did; afterwards it is over."""
    with fault.inject(stack):
        began = time.monotonic()
        wait_until(
            lambda: leader(stack), 2 * TAKEN_OVER_SECS, "another daemon leads", pause=0.2,
            until=lambda found: found not in ("", former),
        )  # fmt: skip
        took = time.monotonic() - began
        # The fault lasts for as long as it takes to have ticks without it.
        known = sum(tags(stack, "dagster/run_key").values())
        wait_until(
            lambda: sum(tags(stack, "dagster/run_key").values()), AWAY_SECS, "the other one ticks",
            until=lambda now: now > known + 1,
        )  # fmt: skip
    return took


def wait_until_started(stack: Stack, container: str, before: str) -> None:
    """Until a container was started again, and is healthy."""
    wait_until(
        lambda: stack.inspect(container)["State"], 120, f"{container} stands by",
        until=lambda state: state["StartedAt"] != before and state["Health"]["Status"] == "healthy",
    )  # fmt: skip


def test_no_tick_is_lost_or_doubled_whatever_becomes_of_the_leader(two: Stack) -> None:
    # Given a sensor that counts, and a schedule of each minute
    first = int(time.time()) // MINUTE_SECS + 1
    selectors = {"sensor": SENSOR, "schedule": SCHEDULE}
    answer = two.graphql(START, **selectors)
    assert "PythonError" not in str(answer), answer
    wait_until(lambda: tags(two, "dagster/run_key"), 60, "first ticks", until=lambda seen: len(seen) >= 2)

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
        took[how] = take_over(two, fault, former)
        # The former one ends itself, and stands by again.
        wait_until_started(two, former, started)
    # And one stops by itself
    former = leader(two)
    began = time.monotonic()
    two.docker("restart", former)
    wait_until(lambda: leader(two), 60, "another daemon leads", until=lambda now: now not in ("", former))
    took["restarted"] = time.monotonic() - began

    # Then another one led soon
    print({how: f"{secs:.1f} s" for how, secs in took.items()})
    assert max(took.values()) < TAKEN_OVER_SECS, took
    # And each number of the sensor has one run
    ids = two.graphql(STATES, **selectors)
    two.graphql(STOP, sensor=ids["sensorOrError"]["id"], schedule=ids["scheduleOrError"]["id"])
    wait_until(lambda: two.sql("SELECT 1 FROM runs WHERE pipeline_name = 'ticked' AND status NOT IN ('SUCCESS', 'FAILURE')"),
               180, "all runs have ended", until=lambda left: not left)  # fmt: skip
    numbers = tags(two, "dagster/run_key")
    assert set(numbers.values()) == {1}, numbers
    assert sorted(map(int, numbers)) == list(range(1, len(numbers) + 1))
    # And each minute one tick with one run
    minutes = scheduled(two)
    assert set(minutes.values()) == {1}, minutes
    assert {minute for minute in minutes if minute >= first} == set(range(first, max(minutes) + 1))
    of_minutes = tags(two, ".dagster/scheduled_execution_time")
    assert len(of_minutes) == len(minutes)
    assert set(of_minutes.values()) == {1}, of_minutes
    # And each run was launched once
    launches = two.sql(LAUNCHES)
    assert len(launches) == len(numbers) + len(minutes)
    assert {count for _, count in launches} == {"1"}, launches
