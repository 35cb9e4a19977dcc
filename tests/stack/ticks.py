"""A sensor that counts and a schedule of each minute, of one code location: what their ticks left in the database."""

import time
from collections import Counter
from dataclasses import dataclass

from tests.stack.stack import Stack
from tests.waiting import wait_until

#: The promise: another daemon leads by then.
TAKEN_OVER_SECS = 20
#: Longer than a lease lasts without a renewal.
AWAY_SECS = 40
MINUTE_SECS = 60
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


def leader(stack: Stack) -> str:
    """The container of the daemon that leads, by its id's first digits, with ` on ` and its host where that is a further one;
    empty while there is none."""
    rows = stack.sql(LEADER)
    return rows[0][0].removeprefix("daemon@") if rows else ""


def wait_for_another(stack: Stack, former: str, seconds: float) -> str:
    """Who leads once the former leader does no more."""
    return wait_until(
        lambda: leader(stack),
        seconds,
        "another daemon leads",
        pause=0.2,
        until=lambda found: found not in ("", former),
    )


@dataclass(frozen=True)
class Ticks:
    """Those of the sensor `counting` and of the schedule `minutely`, whose runs are of the job `ticked`."""

    stack: Stack
    location: str

    @property
    def _selectors(self) -> dict[str, dict[str, str]]:
        repository = {"repositoryName": "__repository__", "repositoryLocationName": self.location}
        sensor, schedule = {"sensorName": "counting"}, {"scheduleName": "minutely"}
        return {"sensor": repository | sensor, "schedule": repository | schedule}

    def start(self) -> int:
        """Both tick; returns the first minute that the schedule owes."""
        first = int(time.time()) // MINUTE_SECS + 1
        answer = self.stack.graphql(START, **self._selectors)
        assert "PythonError" not in str(answer), answer
        wait_until(lambda: self.numbers, 60, "first ticks", until=lambda seen: len(seen) >= 2)
        return first

    def stop(self) -> None:
        """None ticks any more, and all runs have ended."""
        ids = self.stack.graphql(STATES, **self._selectors)
        self.stack.graphql(STOP, sensor=ids["sensorOrError"]["id"], schedule=ids["scheduleOrError"]["id"])
        left = "SELECT 1 FROM runs WHERE pipeline_name = 'ticked' AND status NOT IN ('SUCCESS', 'FAILURE')"
        wait_until(lambda: self.stack.sql(left), 180, "all runs have ended", until=lambda found: not found)

    def wait_for_more(self, seconds: float) -> None:
        """Until the sensor has ticked twice more."""
        known = sum(self.numbers.values())
        wait_until(
            lambda: sum(self.numbers.values()), seconds, "the sensor ticks", until=lambda now: now > known + 1
        )

    @property
    def numbers(self) -> Counter[str]:
        """How many runs there are of each of the sensor's keys."""
        return self._tags("dagster/run_key")

    def _tags(self, key: str) -> Counter[str]:
        rows = self.stack.sql(f"SELECT value FROM run_tags WHERE key = '{key}'")
        return Counter(value for (value,) in rows)

    @property
    def minutes(self) -> Counter[int]:
        """How many of the schedule's ticks there are of each minute."""
        rows = self.stack.sql(
            "SELECT extract(epoch FROM timestamp)::bigint FROM job_ticks WHERE type = 'SCHEDULE'"
        )
        return Counter(int(at) // MINUTE_SECS for (at,) in rows)

    def require_each_once(self, first: int) -> None:
        """Since that minute no tick was lost, and none is there twice, nor its run, nor that one's launch."""
        numbers, minutes = self.numbers, self.minutes
        assert set(numbers.values()) == {1}, numbers
        assert sorted(map(int, numbers)) == list(range(1, len(numbers) + 1))
        assert set(minutes.values()) == {1}, minutes
        assert {minute for minute in minutes if minute >= first} == set(range(first, max(minutes) + 1))
        of_minutes = self._tags(".dagster/scheduled_execution_time")
        assert len(of_minutes) == len(minutes)
        assert set(of_minutes.values()) == {1}, of_minutes
        launches = self.stack.sql(LAUNCHES)
        assert len(launches) == len(numbers) + len(minutes)
        assert {count for _, count in launches} == {"1"}, launches
