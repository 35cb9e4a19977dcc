"""Runs that nobody drives: sent again when their message is lost, ended when somebody wanted that, else left to wait."""

from typing import NoReturn

import pytest
from celery import Celery
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from dagster_stack import tags
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.launch import run_watch as module
from dagster_stack.launch.launcher import CeleryRunLauncher
from dagster_stack.launch.run_watch import LOOK_SECS, RunWatch
from dagster_stack.messaging.messages import step_task_id
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.store.leases import Work
from dagster_stack.timing import IDLE_SECS
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.deliveries import waiting
from tests.unit.driven_runs import Workers, announced
from tests.unit.holders import Database
from tests.unit.runs_by_hand import said, started_run

STARTING, CANCELING = DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING
NO_RUNNER = 'The run waits in queue "runs" and no runner consumes it.'
AGAIN = "No runner has this run: it is handed over again."


@pytest.fixture
def instance(instance: DagsterInstance, database_url: str) -> DagsterInstance:
    Database(database_url).execute("UPDATE runs SET status = 'SUCCESS'")
    return instance


class Watch:
    """The daemon's look after runs, the broker's queues as it sees them, and a clock that moves between looks."""

    def __init__(self, instance: DagsterInstance, database: Database, clock: Clock) -> None:
        self.instance, self.database, self._clock = instance, database, clock
        launcher = instance.run_launcher
        assert isinstance(launcher, CeleryRunLauncher)
        self._launcher = launcher
        self._watch = RunWatch(instance)
        self.queues: dict[str, QueueState] = {}
        self.away = False

    def queue_state(self, _: Celery, name: str) -> QueueState:
        if self.away:
            raise BrokerUnreachable("The broker does not answer: refused")
        return self.queues.get(name, QueueState(0, 1))

    def looks(self, seconds: float) -> None:
        """All looks of so many seconds."""
        until = self._clock.now + seconds
        while True:
            self._watch.look(self._launcher, self.database.leases)
            if self._clock.now >= until:
                return
            self._clock.sleep(LOOK_SECS)

    def run(self, status: DagsterRunStatus) -> DagsterRun:
        """A run that was handed over by the launcher."""
        run = started_run(self.instance, step_jobs.linear, status=status)
        self.instance.add_run_tags(run.run_id, {tags.CODE: "code"})
        return run

    def status(self, run: DagsterRun) -> DagsterRunStatus:
        found = self.instance.get_run_by_id(run.run_id)
        assert found
        return found.status

    def told(self, run: DagsterRun, text: str) -> int:
        return len([line for line in said(self.instance, run.run_id) if text in line])


@pytest.fixture
def watch(
    instance: DagsterInstance, app: Celery, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Watch:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    watch = Watch(instance, Database(database_url), clock)
    monkeypatch.setattr(module, "queue_state", watch.queue_state)
    monkeypatch.setattr(instance.run_launcher, "_app", app)
    return watch


def sent(run: DagsterRun) -> int:
    return len([each for each in waiting("runs") if each["body"][1]["message"]["run_id"] == run.run_id])


# --- runs that start ---------------------------------------------------------------------------------------------------


def test_a_run_whose_message_was_lost_is_handed_over_again(watch: Watch) -> None:
    # Given a run that is to start, and a queue in which nothing waits
    run = watch.run(STARTING)
    # When nobody has it for a while, then it is sent once, and that is said
    watch.looks(IDLE_SECS - LOOK_SECS)
    assert sent(run) == 0
    watch.looks(2 * LOOK_SECS)
    assert sent(run) == watch.told(run, AGAIN) == 1
    # And once more only after another while
    watch.looks(IDLE_SECS - 3 * LOOK_SECS)
    assert sent(run) == 1
    watch.looks(4 * LOOK_SECS)
    assert sent(run) == 2
    assert watch.status(run) == STARTING


def test_a_run_whose_daemon_died_before_it_sent_anything_is_handed_over(watch: Watch) -> None:
    """It is STARTING, and nothing else was done yet."""
    run = started_run(watch.instance, step_jobs.linear, status=STARTING)

    watch.looks(IDLE_SECS)

    assert sent(run) == watch.told(run, AGAIN) == 1


def test_while_a_message_waits_for_a_runner_no_run_is_sent_again(watch: Watch) -> None:
    """Any of those that wait may be the run's own."""
    run = watch.run(STARTING)
    watch.queues["runs"] = QueueState(ready=1, consumers=1)

    watch.looks(5 * IDLE_SECS)

    assert sent(run) == 0
    assert said(watch.instance, run.run_id) == []


def test_a_message_that_is_delayed_for_as_long_as_another_run_lasts_keeps_no_run_waiting(
    watch: Watch,
) -> None:
    """RabbitMQ restarted: a run of hours has its message delivered again and again, another one has none."""
    run = watch.run(STARTING)
    watch.queues["runs.delayed"] = QueueState(ready=1, consumers=0)

    watch.looks(IDLE_SECS)

    assert sent(run) == watch.told(run, AGAIN) == 1


def test_that_no_runner_is_there_is_said_once(watch: Watch) -> None:
    run = watch.run(STARTING)
    watch.queues["runs"] = QueueState(ready=1, consumers=0)

    watch.looks(5 * IDLE_SECS)

    assert watch.told(run, NO_RUNNER) == 1
    assert watch.told(run, "docker compose up -d runner") == 1
    assert sent(run) == 0


def test_it_is_said_again_when_a_runner_was_there_meanwhile(watch: Watch) -> None:
    run = watch.run(STARTING)
    watch.queues["runs"] = QueueState(ready=1, consumers=0)
    watch.looks(2 * IDLE_SECS)
    lease = watch.database.taken(Work(run.run_id), "runner@a")
    watch.looks(LOOK_SECS)
    watch.database.leases.release(lease)

    watch.looks(2 * IDLE_SECS)

    assert watch.told(run, NO_RUNNER) == 2


def test_a_run_that_a_runner_has_is_left_alone(watch: Watch) -> None:
    """It may load its code for minutes before it has started."""
    run = watch.run(STARTING)
    watch.database.taken(Work(run.run_id), "runner@a")

    watch.looks(2 * IDLE_SECS)

    assert sent(run) == 0


def test_a_run_that_comes_and_goes_is_not_idle_in_between(watch: Watch) -> None:
    """What counts is a while without anybody, not the sum of moments."""
    run = watch.run(STARTING)
    for _ in range(3):
        watch.looks(IDLE_SECS - 2 * LOOK_SECS)
        lease = watch.database.taken(Work(run.run_id), "runner@a")
        watch.looks(LOOK_SECS)
        watch.database.leases.release(lease)

    assert sent(run) == 0


def test_without_the_broker_nothing_is_known_and_nothing_is_sent(watch: Watch) -> None:
    run = watch.run(STARTING)
    watch.looks(IDLE_SECS - LOOK_SECS)
    watch.away = True

    with pytest.raises(BrokerUnreachable):
        watch.looks(4 * LOOK_SECS)

    assert sent(run) == 0
    watch.away = False
    watch.looks(LOOK_SECS)
    assert sent(run) == 1


@pytest.mark.parametrize(
    "status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED, DagsterRunStatus.SUCCESS]
)
def test_runs_in_other_states_are_not_its_matter(watch: Watch, status: DagsterRunStatus) -> None:
    """Dagster's own run monitoring looks after those that have started."""
    run = watch.run(status)

    watch.looks(2 * IDLE_SECS)

    assert sent(run) == 0
    assert watch.status(run) == status


def test_a_run_that_is_executed_by_hand_is_not_its_matter(watch: Watch) -> None:
    """It never had the launcher's tag; whoever executes it ends it, or Dagster's own monitoring does."""
    run = started_run(watch.instance, step_jobs.linear, status=CANCELING)

    watch.looks(2 * IDLE_SECS)

    assert watch.status(run) == CANCELING


# --- runs that are to end -------------------------------------------------------------------------------------------------


def test_a_run_that_is_being_canceled_and_has_nobody_is_canceled_with_its_steps(
    watch: Watch, workers: Workers
) -> None:
    """Its runner died, or somebody canceled it before one had it."""
    run = watch.run(CANCELING)
    announced(watch.instance, run, "one")

    watch.looks(IDLE_SECS - LOOK_SECS)
    assert watch.status(run) == CANCELING
    watch.looks(2 * LOOK_SECS)

    assert watch.status(run) == DagsterRunStatus.CANCELED
    assert workers.revoked == [[step_task_id(run.run_id, "one", 1)]]


def test_a_run_that_a_runner_is_ending_is_left_to_it(watch: Watch) -> None:
    run = watch.run(CANCELING)
    watch.database.taken(Work(run.run_id), "runner@a")

    watch.looks(2 * IDLE_SECS)

    assert watch.status(run) == CANCELING


# --- the thread ----------------------------------------------------------------------------------------------------------


def test_a_look_that_fails_is_followed_by_the_next_one(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [BrokerUnreachable("refused"), ValueError("a mistake"), KeyboardInterrupt()]

    def look(*_: object) -> NoReturn:
        raise errors.pop(0)

    monkeypatch.setattr(watch._watch, "look", look)

    with pytest.raises(KeyboardInterrupt):
        watch._watch.run()

    assert "the look after runs failed; the next one follows" in caplog.text
    assert errors == []


def test_an_instance_without_the_stacks_launcher_is_not_watched() -> None:
    with DagsterInstance.ephemeral() as instance:
        RunWatch(instance).run()


def test_leases_of_runs_that_ended_are_forgotten_once_an_hour(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[float] = []
    monkeypatch.setattr(watch.database.leases, "prune", lambda: forgotten.append(watch._clock.now))

    watch.looks(1500)

    assert len(forgotten) == 1
