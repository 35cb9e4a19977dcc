"""Runs that a step executes by itself: each is part of that execution, and ends with it, however it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
from celery import Celery, Task
from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    OpExecutionContext,
    RunsFilter,
    execute_job,
    materialize,
    reconstructable,
)
from dagster._core.execution.api import execute_run_iterator

from dagster_stack import tags
from dagster_stack.errors import Fenced
from dagster_stack.failure_reasons import LABEL, Reason
from dagster_stack.launch.launcher import CeleryRunLauncher
from dagster_stack.launch.run_watch import RunWatch
from dagster_stack.messaging.messages import RunMessage
from dagster_stack.messaging.task_names import RUN_TASK
from dagster_stack.run.run_execution import execute_run
from dagster_stack.store import within
from dagster_stack.store.leases import Lease, Leases, Work
from dagster_stack.timing import STALE_SECS
from tests.unit import eventful_jobs, inner_jobs, step_jobs
from tests.unit.deliveries import Delivery
from tests.unit.holders import Database, any_work, entry
from tests.unit.runs_by_hand import events, execute, kinds, message, said, started_run

HOLDER = "worker@here"
STARTED, SUCCESS, FAILURE = DagsterRunStatus.STARTED, DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE
CANCELING, CANCELED = DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED

Act = Callable[[OpExecutionContext], Any]


class Stack:
    """A step that does what a test says, and the daemon's looks after runs."""

    def __init__(
        self,
        instance: DagsterInstance,
        daemons: DagsterInstance,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.instance, self.daemons = instance, daemons
        self.database, self._patch = database, monkeypatch
        launcher = daemons.run_launcher
        assert isinstance(launcher, CeleryRunLauncher)
        self._launcher, self._watch = launcher, RunWatch(daemons)

    @contextmanager
    def daemon(self) -> Iterator[DagsterInstance]:
        """The daemon's instance, in a process that is no step's."""
        with self._patch.context() as patch:
            patch.delenv(within.VARIABLE, raising=False)
            yield self.daemons

    def look(self) -> None:
        with self.daemon():
            self._watch.look(self._launcher, self.database.leases)

    def within(self, happening: Callable[[DagsterRun], Any]) -> None:
        """What happens in the middle of each inner run."""
        self._patch.setattr(inner_jobs, "happening", lambda run_id: happening(self.run(run_id)))

    def step(self, act: Act) -> DagsterRun:
        """A run whose first step was executed by a worker, and did this."""
        self._patch.setattr(eventful_jobs, "happenings", {"eventful": [act]})
        run = started_run(self.instance, eventful_jobs.with_an_event)
        with suppress(Fenced):
            execute(message(self.instance, run, "eventful"), HOLDER)
        return run

    def outer(self, inner: DagsterRun) -> Work:
        return Work(json.loads(inner.tags[tags.WITHIN])["run"], "eventful", 1)

    def is_killed(self, inner: DagsterRun) -> None:
        """The process of the step is dead, and its worker says so."""
        self.database.leases.mark_lost(self.outer(inner), HOLDER, "killed by SIGKILL")

    def run(self, run_id: str) -> DagsterRun:
        run = self.daemons.get_run_by_id(run_id)
        assert run
        return run

    def inner(self, job: str = "inner") -> DagsterRun:
        (run,) = self.instance.get_runs(RunsFilter(job_name=job))
        return run


@pytest.fixture
def stack(
    instance: DagsterInstance, database: Database, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stack]:
    database.execute("DELETE FROM runs")
    database.execute("DELETE FROM dagster_stack_claims")
    with DagsterInstance.get() as daemons:
        monkeypatch.setattr(daemons.run_launcher, "_app", app)
        yield Stack(instance, daemons, database, monkeypatch)


def in_process(context: OpExecutionContext) -> None:
    inner_jobs.inner.execute_in_process(instance=context.instance)


def by_execute_job(context: OpExecutionContext) -> None:
    execute_job(reconstructable(inner_jobs.inner), context.instance, raise_on_error=True)


def by_an_instance_of_its_own(_: OpExecutionContext) -> None:
    with DagsterInstance.get() as instance:
        inner_jobs.inner.execute_in_process(instance=instance)


def within_another(context: OpExecutionContext) -> None:
    inner_jobs.between.execute_in_process(instance=context.instance)


WAYS = [in_process, by_execute_job, by_an_instance_of_its_own, within_another]

# --- the process of the step dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_a_step_executes_has_failed_when_the_steps_process_dies(stack: Stack, way: Act) -> None:
    # Given a step that executes a run, in the middle of which its process is killed
    def dies(inner: DagsterRun) -> None:
        stack.look()
        assert stack.run(inner.run_id).status == STARTED
        stack.is_killed(inner)
        # When the daemon looks
        stack.look()

    stack.within(dies)
    outer = stack.step(way)

    # Then that run has failed at once, and says of what, and what to do
    inner = stack.inner()
    assert inner.status == FAILURE
    text = said(stack.instance, inner.run_id)[-1]
    assert f"was executed within step eventful of run {outer.run_id}" in text
    assert f"{HOLDER}: killed by SIGKILL" in text
    assert "launch it" in text
    # And its step that was under way has failed by a reason that can be counted
    failed = [each for each in events(stack.instance, inner.run_id) if each.is_step_failure]
    (told,) = (each.step_failure_data.user_failure_data for each in failed)
    assert told
    assert told.metadata[LABEL].value == Reason.LOST_WITH_STEP
    assert [each.step_key for each in failed] == ["happens"]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_process_that_lost_its_step_says_of_an_inner_run_does_not_count(
    stack: Stack, way: Act
) -> None:
    # Given a process that was frozen within an inner run, whose step has gone to another one, and that comes back
    def thaws(inner: DagsterRun) -> None:
        stack.database.silence(stack.outer(inner), STALE_SECS + 1)
        stack.database.taken(stack.outer(inner), "worker@there")
        stack.look()

    stack.within(thaws)
    outer = stack.step(way)

    # Then the run stays as it was ended, and nothing stands behind that end
    inner = stack.inner()
    assert inner.status == FAILURE
    assert kinds(stack.instance, inner.run_id)[-1] == "PIPELINE_FAILURE"
    assert "STEP_SUCCESS" not in kinds(stack.instance, inner.run_id, "happens")
    # Nor is the step recorded, which is another process's now
    assert "STEP_SUCCESS" not in kinds(stack.instance, outer.run_id, "eventful")
    assert "STEP_FAILURE" not in kinds(stack.instance, outer.run_id, "eventful")


def test_an_inner_run_that_is_being_canceled_is_canceled_when_its_process_is_dead(stack: Stack) -> None:
    """Dagster's monitoring would wait for two minutes."""

    def dies(inner: DagsterRun) -> None:
        with stack.daemon() as daemon:
            daemon.report_run_canceling(inner)
        stack.look()
        assert stack.run(inner.run_id).status == CANCELING
        stack.is_killed(inner)
        stack.look()

    stack.within(dies)
    stack.step(in_process)

    assert stack.inner().status == CANCELED


def test_the_assets_that_a_step_materialises_by_a_run_end_with_it_too(stack: Stack) -> None:
    def dies(inner: DagsterRun) -> None:
        stack.is_killed(inner)
        stack.look()

    stack.within(dies)
    stack.step(lambda context: materialize([inner_jobs.table], instance=context.instance))

    (inner,) = (run for run in stack.instance.get_runs() if tags.WITHIN in run.tags)
    assert inner.status == FAILURE
    assert "ASSET_MATERIALIZATION" not in kinds(stack.instance, inner.run_id)


def test_a_run_within_a_runner_ends_with_the_runner(stack: Stack, app: Celery) -> None:
    """Its op is executed there, by another executor."""

    def dies(inner: DagsterRun) -> None:
        outer = Work(json.loads(inner.tags[tags.WITHIN])["run"])
        stack.database.leases.mark_lost(outer, "runner@a (process 1)", "killed by SIGKILL")
        stack.database.leases.mark_lost_of_worker("runner@a", 0)
        stack.database.silence(outer, STALE_SECS + 1)
        stack.database.taken(outer, "runner@b")
        stack.look()

    stack.within(dies)
    eventful_jobs.happenings["eventful"] = [in_process]
    run = started_run(stack.instance, eventful_jobs.of_another_executor, status=DagsterRunStatus.STARTING)
    execute_run(
        cast(Task, Delivery(app, RUN_TASK, hostname="runner@a")), RunMessage(run.run_id, "").to_json()
    )

    assert stack.inner().status == FAILURE
    assert tags.WITHIN not in stack.run(run.run_id).tags


# --- it lives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_an_inner_run_that_ended_is_left_as_it_is(stack: Stack, way: Act) -> None:
    outer = stack.step(way)

    stack.look()

    assert stack.inner().status == SUCCESS
    assert kinds(stack.instance, stack.inner().run_id).count("PIPELINE_SUCCESS") == 1
    assert kinds(stack.instance, outer.run_id, "eventful")[-1] == "STEP_SUCCESS"


def test_an_inner_run_of_a_process_that_is_silent_goes_on(stack: Stack) -> None:
    """A sort of millions of rows lets no thread give signs of life; its step goes on too."""

    def is_busy(inner: DagsterRun) -> None:
        stack.database.silence(stack.outer(inner), 100 * STALE_SECS)
        stack.look()

    stack.within(is_busy)
    stack.step(in_process)

    assert stack.inner().status == SUCCESS


def test_an_inner_run_outlives_the_run_of_its_step(stack: Stack) -> None:
    """Such as in a hook: it goes on when the step, and with that the run, has ended."""

    def has_ended(inner: DagsterRun) -> None:
        with stack.daemon() as daemon:
            daemon.report_run_failed(stack.run(stack.outer(inner).run_id))
        stack.look()

    stack.within(has_ended)
    stack.step(in_process)

    assert stack.inner().status == SUCCESS


def test_one_whose_silent_process_has_no_run_any_more_to_come_back_to_has_failed(stack: Stack) -> None:
    """The last worker is gone, and the outer run was ended by force: nobody takes its step any more."""

    def is_gone(inner: DagsterRun) -> None:
        outer = stack.outer(inner)
        stack.database.silence(outer, STALE_SECS + 1)
        with stack.daemon() as daemon:
            daemon.report_run_canceled(stack.run(outer.run_id))
        stack.look()

    stack.within(is_gone)
    stack.step(in_process)

    assert stack.inner().status == FAILURE


def test_a_run_that_its_step_leaves_unfinished_has_failed(stack: Stack) -> None:
    """Nobody goes on with it when its step has ended."""

    def begins(context: OpExecutionContext) -> None:
        run = context.instance.create_run_for_job(inner_jobs.inner)
        left = execute_run_iterator(reconstructable(inner_jobs.inner), run, context.instance)
        kept.extend((left, next(left)))

    kept: list[Any] = []
    stack.step(begins)
    assert stack.inner().status == STARTED

    stack.look()

    assert stack.inner().status == FAILURE


def test_a_run_that_ends_while_the_daemon_looks_does_not_end_twice(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was seen as started, and then ended with its step before its lease was asked for."""
    lost = Leases.lost

    def ended_meanwhile(self: Leases, asked: Iterable[Lease]) -> list[Lease]:
        inner = stack.inner()
        stack.database.execute("UPDATE runs SET status = 'SUCCESS' WHERE run_id = :run", run=inner.run_id)
        stack.is_killed(inner)
        return lost(self, asked)

    monkeypatch.setattr(Leases, "lost", ended_meanwhile)
    stack.within(lambda _: stack.look())
    stack.step(in_process)

    assert stack.inner().status == SUCCESS
    assert "PIPELINE_FAILURE" not in kinds(stack.instance, stack.inner().run_id)


# --- other processes of the step ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_may_execute_a_run(stack: Stack) -> None:
    """So far it ended at the run's first step, and the run stayed as started."""

    def forks(context: OpExecutionContext) -> None:
        child = os.fork()
        if not child:
            in_process(context)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    outer = stack.step(forks)

    inner = stack.inner()
    assert inner.status == SUCCESS
    assert kinds(stack.instance, inner.run_id).count("STEP_SUCCESS") == 3
    assert stack.outer(inner).run_id == outer.run_id
    assert kinds(stack.instance, outer.run_id, "eventful")[-1] == "STEP_SUCCESS"


PROGRAM = """
import os, sys
from dagster import DagsterInstance
from tests.unit import inner_jobs
inner_jobs.happening = lambda _: os._exit(9)
with DagsterInstance.get() as instance:
    inner_jobs.inner.execute_in_process(instance=instance)
"""


def test_a_run_of_a_program_that_the_step_starts_ends_with_it(stack: Stack) -> None:
    """Such as `dagster job execute`; it ends with the step."""
    stack.step(lambda _: subprocess.run([sys.executable, "-c", PROGRAM], check=False))
    assert stack.inner().status == STARTED

    stack.look()

    assert stack.inner().status == FAILURE


def test_a_process_of_an_inner_runs_own_executor_is_fenced_by_the_steps_claim(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as `multiprocess_executor` starts for each step: by an instance that works for no lease."""
    # Given a process that has begun a step of a run that another run's step executes
    work, run = any_work(), database.run()
    monkeypatch.setenv(within.VARIABLE, within.to_text(database.taken(work, "a")))
    storage = database.process().event_log_storage
    storage.store_event(entry(run.run_id, DagsterEventType.STEP_START))
    storage.check_lease(run.run_id)

    # When the other run's step has gone to another process
    database.silence(work, STALE_SECS + 1)
    database.taken(work, "b")

    # Then neither the end of that step counts, nor what it writes
    with pytest.raises(Fenced):
        storage.store_event(entry(run.run_id, DagsterEventType.STEP_SUCCESS))
    with pytest.raises(Fenced):
        storage.check_lease(run.run_id)
    assert database.events(run.run_id) == [("step", "STEP_START")]


# --- runs that are no step's -------------------------------------------------------------------------------------


def test_a_run_that_is_executed_by_hand_is_nobodys_but_its_own(stack: Stack) -> None:
    """In a notebook, from `make shell`: whether it lives, nobody here knows."""
    stack.within(lambda _: stack.look())

    inner_jobs.inner.execute_in_process(instance=stack.instance)

    assert stack.inner().status == SUCCESS
    assert tags.WITHIN not in stack.inner().tags


def test_a_run_does_not_get_the_stacks_tags_from_another(stack: Stack) -> None:
    """Taken for one that was launched, it would be handed to a runner after a while; or end with that other's step."""
    stack.step(in_process)
    copied = {**stack.inner().tags, tags.CODE: "code", tags.DEFINITIONS: "3", "team": "data"}
    stack.database.execute("DELETE FROM runs")

    inner_jobs.inner.execute_in_process(instance=stack.instance, tags=copied)

    assert not {tags.WITHIN, tags.CODE, tags.DEFINITIONS} & stack.inner().tags.keys()
    assert stack.inner().tags["team"] == "data"


def test_a_run_that_a_step_launches_is_not_its_own(stack: Stack) -> None:
    runs = []
    stack.step(lambda context: runs.append(started_run(context.instance, step_jobs.linear)))

    stack.look()

    assert stack.run(runs[0].run_id).status == STARTED


def test_a_tag_that_says_nothing_harms_no_look(stack: Stack) -> None:
    run = started_run(stack.instance, step_jobs.linear)
    for text in ("", "step", "{}", "[1]", '{"run": 1}'):
        stack.instance.add_run_tags(run.run_id, {tags.WITHIN: text})
        stack.look()

    assert stack.run(run.run_id).status == STARTED
