"""Steps that are called back: what waits is dropped, what runs is interrupted, and killed when it does not end."""

from typing import Any

import pytest
from celery import Celery
from dagster import DagsterInstance, DagsterRun
from kombu.exceptions import OperationalError

from dagster_stack.messaging.messages import step_task_id
from dagster_stack.run import termination
from dagster_stack.run.termination import call_back
from dagster_stack.store.leases import Lease, Work
from dagster_stack.timing import GRACE_SECS, STALE_SECS
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.holders import Database
from tests.unit.runs_by_hand import started_run


class Workers:
    """What Celery's `control.revoke` tells all workers: the tasks and the signal, in the order of the calls.

    A broker that is away makes it raise kombu's OperationalError, or what its connection raises.
    """

    def __init__(self) -> None:
        self.told: list[tuple[list[str], str]] = []
        self.error: Exception | None = None
        self.control = self

    def revoke(self, ids: list[str], terminate: bool, signal: str) -> None:
        assert terminate
        if self.error:
            raise self.error
        self.told.append((sorted(ids), signal))


class Termination:
    """A run of 12 steps, of which some are executed when they are called back."""

    def __init__(self, instance: DagsterInstance, database: Database, clock: Clock) -> None:
        self.run: DagsterRun = started_run(instance, step_jobs.wide)
        self.workers = Workers()
        self.ends_at: dict[str, float] = {}
        self._instance, self._database, self._clock = instance, database, clock
        self._leases: dict[str, Lease] = {}
        clock_sleep = clock.sleep

        def sleep(seconds: float) -> None:
            clock_sleep(seconds)
            for key, at in self.ends_at.items():
                if clock.now >= at:
                    database.leases.release(self._leases[key])

        self.sleep = sleep

    def executes(self, *keys: str) -> None:
        for key in keys:
            self._leases[key] = self._database.taken(Work(self.run.run_id, key, 1), "worker@a (process 1)")

    def task(self, key: str) -> str:
        return step_task_id(self.run.run_id, key, 1)

    def call_back(self, *keys: str) -> list[str]:
        app: Any = self.workers
        checked: Celery = app
        return call_back(checked, self._instance, self.run.run_id, [self.task(key) for key in keys])

    def beats(self, key: str) -> bool:
        return self._database.leases.renew(self._leases[key]) is not None


@pytest.fixture
def steps(instance: DagsterInstance, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Termination:
    clock = Clock()
    made = Termination(instance, Database(database_url), clock)
    monkeypatch.setattr(clock, "sleep", made.sleep)
    monkeypatch.setattr(termination, "time", clock)
    return made


def elapsed(steps: Termination) -> float:
    return steps._clock.now - Clock().now


def test_steps_that_wait_are_dropped_at_once(steps: Termination) -> None:
    assert steps.call_back("step_00", "step_01") == []

    assert steps.workers.told == [(sorted([steps.task("step_00"), steps.task("step_01")]), "SIGINT")]
    assert elapsed(steps) == 0


def test_a_step_that_ends_in_its_grace_period_is_not_killed(steps: Termination) -> None:
    steps.executes("step_00")
    steps.ends_at["step_00"] = Clock().now + GRACE_SECS / 2

    assert steps.call_back("step_00", "step_01") == []

    assert [signal for _, signal in steps.workers.told] == ["SIGINT"]
    assert GRACE_SECS / 2 <= elapsed(steps) < GRACE_SECS


def test_a_step_that_goes_on_is_killed_after_its_grace_period_and_no_other_one(steps: Termination) -> None:
    # Given one that ends when it is interrupted, and one that does not mind
    steps.executes("step_00", "step_01")
    steps.ends_at["step_00"] = Clock().now + 1

    # When they are called back
    killed = steps.call_back("step_00", "step_01", "step_02")

    # Then only the stubborn one is killed
    assert killed == ["step_01"]
    assert steps.workers.told[1:] == [([steps.task("step_01")], "SIGKILL")]
    assert GRACE_SECS <= elapsed(steps) < GRACE_SECS + 1


def test_what_was_sent_by_an_earlier_process_is_killed_too_though_this_one_never_heard_of_it(
    steps: Termination,
) -> None:
    steps.executes("step_07")

    assert steps.call_back() == ["step_07"]

    assert steps.workers.told == [([steps.task("step_07")], "SIGKILL")]


@pytest.mark.parametrize("error", [OperationalError("refused"), ConnectionResetError(104, "reset")])
def test_a_step_that_nobody_can_reach_can_report_nothing_any_more(
    steps: Termination, error: Exception
) -> None:
    """Its worker is cut off from the broker: it notices at its next sign of life."""
    steps.executes("step_00")
    steps.workers.error = error

    assert steps.call_back("step_00") == ["step_00"]

    assert not steps.beats("step_00")


def test_a_process_that_is_dead_is_not_waited_for(steps: Termination) -> None:
    steps.executes("step_00")
    steps._database.silence(Work(steps.run.run_id, "step_00", 1), STALE_SECS + 1)

    assert steps.call_back("step_00") == []

    assert elapsed(steps) == 0


def test_a_process_that_only_seems_dead_is_killed(steps: Termination) -> None:
    """Code that keeps Python's global lock lets its process give no sign of life, and take no interrupt."""
    steps.executes("step_00")
    steps._database.silence(Work(steps.run.run_id, "step_00", 1), STALE_SECS + 1)

    steps.call_back("step_00", "step_01")

    assert steps.workers.told[1:] == [([steps.task("step_00")], "SIGKILL")]


def test_the_runs_own_lease_and_other_runs_are_left_alone(steps: Termination) -> None:
    own = steps._database.taken(Work(steps.run.run_id), "runner@a")
    other = steps._database.taken(Work("another run", "step_00", 1), "worker@a")
    steps.executes("step_00")

    steps.call_back("step_00")

    assert steps._database.leases.renew(own)
    assert steps._database.leases.renew(other)


def test_without_leases_steps_are_called_back_and_none_is_waited_for(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded mode: its worker interrupts what it executes."""
    workers, clock = Workers(), Clock()
    monkeypatch.setattr(termination, "time", clock)
    app: Any = workers

    assert call_back(app, instance, "run", ["task"]) == []

    assert workers.told == [(["task"], "SIGINT")]
    assert clock.now == Clock().now
