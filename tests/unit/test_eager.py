"""A run with `task_always_eager`: its own process executes the steps, and no broker is asked for anything."""

import os
import signal
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from celery import Celery, Task
from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    ReexecutionOptions,
    execute_job,
    reconstructable,
)
from kombu.connection import Connection

from dagster_stack.messaging.messages import RunMessage
from dagster_stack.messaging.run_connection import RunConnection
from dagster_stack.messaging.task_names import RUN_TASK
from dagster_stack.run import eager, run_execution
from dagster_stack.run.run_execution import MOST_LOSSES
from dagster_stack.store import lease_renewal
from dagster_stack.store import leases as leases_module
from dagster_stack.store.leases import Work
from dagster_stack.timing import STALE_SECS
from dagster_stack.worker.lost_processes import KILLED_AT_LIMIT
from tests.unit import eventful_jobs, step_jobs
from tests.unit.clock import Clock
from tests.unit.deliveries import Delivery
from tests.unit.driven_runs import Result, announced, executed, resumed
from tests.unit.holders import Database
from tests.unit.runs_by_hand import events, execute, message, said, started_run

EAGER: dict[str, Any] = {"config_source": {"task_always_eager": True}}
CONFIG = {"execution": {"config": EAGER}}


@pytest.fixture
def instance(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> DagsterInstance:
    monkeypatch.setattr(eventful_jobs, "happenings", {})
    return instance


@pytest.fixture(autouse=True)
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none, and whoever looks for one fails."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a broker is asked")

    monkeypatch.setattr(RunConnection, "__init__", refuse)
    monkeypatch.setattr(Connection, "connect", refuse)
    monkeypatch.setattr(Connection, "ensure_connection", refuse)


@pytest.fixture(autouse=True)
def eager_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(eager, "time", clock)
    return clock


def begun(result: Result) -> list[str]:
    return [str(event.step_key) for event in events(result.instance, result.run_id) if event.is_step_start]


# --- plans of every shape -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "ends"),
    [
        ("linear", {"one": ["STEP_SUCCESS"], "second": ["STEP_SUCCESS"], "third": ["STEP_SUCCESS"]}),
        ("retrying", {"stubborn": ["STEP_UP_FOR_RETRY"] * 2 + ["STEP_SUCCESS"], "add_one": ["STEP_SUCCESS"]}),
        ("retrying_later", {"later": ["STEP_UP_FOR_RETRY", "STEP_SUCCESS"]}),
        ("alone", {"one": ["STEP_SUCCESS"]}),
        ("with_a_pool", {f"pooled_{number}": ["STEP_SUCCESS"] for number in range(3)}),
        ("with_a_limit", {**{f"limited_{each}": ["STEP_SUCCESS"] for each in range(3)}, "one": ["STEP_SUCCESS"]}),
        ("fan_in", {name: ["STEP_SUCCESS"] for name in ("first", "second", "third", "total")}),
    ],
)  # fmt: skip
def test_steps_end_as_on_workers(instance: DagsterInstance, job: str, ends: dict[str, list[str]]) -> None:
    result = executed(instance, getattr(step_jobs, job), EAGER)

    assert result.status == DagsterRunStatus.SUCCESS
    assert result.ends() == ends


def test_dynamic_outputs_are_mapped_and_collected(instance: DagsterInstance) -> None:
    result = executed(instance, step_jobs.dynamic, EAGER)
    assert result.value("after_total") == 10

    assert executed(instance, step_jobs.dynamic_without_any, EAGER).value("after_total") == 1


def test_a_failure_ends_what_depends_on_it_and_nothing_else(instance: DagsterInstance) -> None:
    result = executed(instance, step_jobs.with_a_failure, EAGER)

    assert result.status == DagsterRunStatus.FAILURE
    assert result.ends() == {
        "fail": ["STEP_FAILURE"],
        "one": ["STEP_SUCCESS"],
        "beside": ["STEP_SUCCESS"],
    }


def test_a_resource_that_fails_fails_its_step_alone(instance: DagsterInstance) -> None:
    result = executed(instance, step_jobs.with_a_broken_resource, EAGER)

    assert result.ends()["needs_resource"] == ["STEP_FAILURE"]
    assert result.ends()["beside"] == ["STEP_SUCCESS"]


def test_the_highest_priority_of_what_is_ready_comes_first(instance: DagsterInstance) -> None:
    assert begun(executed(instance, step_jobs.prioritized, EAGER)) == ["heavy", "one", "unimportant"]


def test_retries_that_are_off_stay_off(instance: DagsterInstance) -> None:
    result = executed(instance, step_jobs.retrying, {**EAGER, "retries": {"disabled": {}}})

    assert result.ends() == {"stubborn": ["STEP_FAILURE"]}


def test_what_a_branch_leaves_out_is_skipped(instance: DagsterInstance) -> None:
    result = executed(instance, step_jobs.branching, EAGER)

    assert result.ends()["on_the_left"] == ["STEP_SUCCESS"]
    assert result.ends()["on_the_right"] == result.ends()["further_right"] == ["STEP_SKIPPED"]


def test_hooks_are_called(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_jobs, "hooked_steps", [])

    executed(instance, step_jobs.hooked, EAGER)

    assert step_jobs.hooked_steps == ["one"]


def test_a_step_leaves_the_process_as_it_was(instance: DagsterInstance) -> None:
    folder = os.getcwd()

    assert executed(instance, step_jobs.disturbing, EAGER).succeeded

    assert os.getcwd() == folder
    assert "LEFT_BY_A_STEP" not in os.environ


def test_celery_yaml_may_say_so_for_all_jobs(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "celery.yaml"
    path.write_text("execution: {config: {config_source: {task_always_eager: true}}}")
    monkeypatch.setenv("DAGSTER_STACK_CELERY_YAML", str(path))

    assert executed(instance, step_jobs.linear).succeeded


def test_execute_job_does_the_same_without_postgres(
    sqlite_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the caller's instance, whatever DAGSTER_HOME says; and its failure can be repeated."""
    monkeypatch.setenv("DATA_IS_BROKEN", "1")
    with execute_job(reconstructable(step_jobs.repairable), sqlite_instance, run_config=CONFIG) as failed:
        assert not failed.success
    monkeypatch.delenv("DATA_IS_BROKEN")
    with execute_job(
        reconstructable(step_jobs.repairable),
        sqlite_instance,
        run_config=CONFIG,
        reexecution_options=ReexecutionOptions.from_failure(failed.run_id, sqlite_instance),
    ) as repeated:
        assert repeated.success


# --- interrupted, stopped, resumed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["with_an_event", "with_an_event_and_a_policy"])
def test_an_interrupt_of_a_step_ends_its_run(instance: DagsterInstance, job: str) -> None:
    """Also where the step is up for retry after it, by its policy."""

    def interrupted(_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    eventful_jobs.happenings["eventful"] = [interrupted]

    run = started_run(instance, getattr(eventful_jobs, job), CONFIG, status=DagsterRunStatus.STARTING)
    result = resumed(instance, run, getattr(eventful_jobs, job), resume=False)

    # By whomever, so Dagster calls it a failure
    assert begun(result) == ["eventful"]
    assert result.status == DagsterRunStatus.FAILURE


def test_a_run_that_goes_on_executes_what_had_not_ended(instance: DagsterInstance) -> None:
    run = started_run(instance, step_jobs.linear, CONFIG)
    announced(instance, run, "one", "second")
    execute(message(instance, run, "one"))

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS
    assert result.ends() == {key: ["STEP_SUCCESS"] for key in ("one", "second", "third")}


def test_a_step_that_was_lost_with_its_run_is_counted(
    instance: DagsterInstance, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a runner that died while it executed a step
    run = started_run(instance, eventful_jobs.executed_once, CONFIG)
    announced(instance, run, "once")
    work = Work(run.run_id, "once", 1)
    database.taken(work, "runner@a (process 3)")
    database.silence(work, STALE_SECS + 1)

    # When another one goes on with the run
    result = resumed(instance, run, eventful_jobs.executed_once)

    # Then the step that must not be executed twice is not
    assert result.ends() == {"once": ["STEP_FAILURE"]}
    assert result.said("It must not be executed twice")


def test_a_step_that_another_process_has_is_waited_for(
    instance: DagsterInstance, database: Database, eager_clock: Clock
) -> None:
    """The runner before this one may be alive: it is told that the run is another's, and its lease falls silent."""
    run = started_run(instance, step_jobs.linear, CONFIG)
    announced(instance, run, "one")
    work = Work(run.run_id, "one", 1)
    database.taken(work, "runner@a (process 3)")
    sleep = eager_clock.sleep

    def falls_silent(seconds: float) -> None:
        sleep(seconds)
        if eager_clock.now > 1010:
            database.silence(work, STALE_SECS + 1)

    eager_clock.sleep = falls_silent  # type: ignore[method-assign]

    assert resumed(instance, run, step_jobs.linear).status == DagsterRunStatus.SUCCESS
    assert eager_clock.now > 1010


def drives(app: Celery, run: DagsterRun) -> None:
    delivery = Delivery(app, RUN_TASK, hostname="runner@a", queue="runs")
    run_execution.execute_run(cast(Task, delivery), RunMessage(run.run_id, "").to_json())


def test_what_a_runner_executes_itself_is_fenced_by_its_run(
    instance: DagsterInstance, app: Celery, database: Database
) -> None:
    """A runner that was frozen in the middle of a step must not fail it when it comes back."""
    run = started_run(instance, eventful_jobs.with_an_event, CONFIG, status=DagsterRunStatus.STARTING)

    def taken_over(_: Any) -> None:
        database.silence(Work(run.run_id), STALE_SECS + 1)
        database.taken(Work(run.run_id), "runner@b (process 1)")
        raise ValueError("this is of no interest any more")

    eventful_jobs.happenings["eventful"] = [taken_over]

    drives(app, run)

    assert not [line for line in said(instance, run.run_id) if "of no interest" in line]
    found = instance.get_run_by_id(run.run_id)
    assert found
    assert found.status == DagsterRunStatus.STARTED


def test_a_runner_that_stops_lets_its_step_end_and_hands_the_run_over(
    instance: DagsterInstance, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    leaving: list[bool] = []
    for module in (eager, run_execution):
        monkeypatch.setattr(module, "is_leaving", lambda: bool(leaving))
    monkeypatch.setattr(lease_renewal, "LOOK_SECS", 0.02)
    monkeypatch.setattr(leases_module, "RUN_RENEWAL_SECS", 0.05)
    monkeypatch.setattr(eager, "time", time)
    run = started_run(instance, eventful_jobs.with_an_event, CONFIG, status=DagsterRunStatus.STARTING)

    def stops(_: Any) -> None:
        leaving.append(True)
        time.sleep(0.5)

    eventful_jobs.happenings["eventful"] = [stops]

    with pytest.raises(Exception, match="this runner stops"):
        drives(app, run)

    result = Result(instance, run.run_id, [])
    assert result.ends() == {"eventful": ["STEP_SUCCESS"]}
    # And the next one goes on
    leaving.clear()
    drives(app, run)
    assert result.status == DagsterRunStatus.SUCCESS


def test_a_run_that_is_canceled_interrupts_the_step_that_its_runner_executes(
    instance: DagsterInstance, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(lease_renewal, "LOOK_SECS", 0.02)
    monkeypatch.setattr(leases_module, "RUN_RENEWAL_SECS", 0.05)
    monkeypatch.setattr(leases_module, "STEP_RENEWAL_SECS", 0.05)
    run = started_run(instance, eventful_jobs.with_an_event, CONFIG, status=DagsterRunStatus.STARTING)

    def canceled(_: Any) -> None:
        instance.report_run_canceling(run)
        time.sleep(5)

    eventful_jobs.happenings["eventful"] = [canceled]

    drives(app, run)

    found = instance.get_run_by_id(run.run_id)
    assert found
    assert found.status == DagsterRunStatus.CANCELED


def test_a_runner_that_died_of_a_steps_limit_does_not_count_against_its_run(
    instance: DagsterInstance, app: Celery, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear, CONFIG)
    for number in range(MOST_LOSSES):
        holder = f"runner@{number} (process 1)"
        database.taken(Work(run.run_id), holder)
        database.leases.mark_lost(Work(run.run_id), holder, KILLED_AT_LIMIT)

    drives(app, run)

    assert Result(instance, run.run_id, []).status == DagsterRunStatus.SUCCESS
