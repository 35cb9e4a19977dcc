"""One delivery of a step message, from the message to the wake-up, on an instance in local files."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState

from dagster_stack.pool.isolation import undisturbed
from dagster_stack.step import plan_cache, step_execution
from tests.unit import step_jobs
from tests.unit.database_errors import AWAY, ask_warehouse
from tests.unit.deliveries import Delivery, dead_letters
from tests.unit.runs_by_hand import events, execute, kinds, message, said, started_run


@pytest.fixture
def instance(either_instance: DagsterInstance) -> DagsterInstance:
    return either_instance


def outputs(*keys: str) -> KnownExecutionState:
    return KnownExecutionState(ready_outputs={StepOutputHandle(key, "result") for key in keys})


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """The wake-ups that were sent: app and run."""
    sent: list[tuple[Any, str]] = []
    monkeypatch.setattr(step_execution, "wake_up", lambda app, run_id: sent.append((app, run_id)))
    return sent


# --- a step is executed --------------------------------------------------------------------------------------


def test_steps_are_executed_one_by_one_and_hand_their_outputs_on(instance: DagsterInstance) -> None:
    # Given a run whose steps come as messages
    run = started_run(instance, step_jobs.linear)

    # When each is executed
    for key, state in (("one", outputs()), ("second", outputs("one")), ("third", outputs("one", "second"))):
        assert execute(message(instance, run, key, state)) == ["woken"]

    # Then each has Dagster's events of a step, in their order, and what it made is where the next one found it
    for key in ("one", "second", "third"):
        told = kinds(instance, run.run_id, key)
        assert told[0] == "STEP_WORKER_STARTED"
        assert [kind for kind in told if kind.startswith("STEP_")][1:] == [
            "STEP_START", *(["STEP_INPUT"] if key != "one" else []), "STEP_OUTPUT", "STEP_SUCCESS"
        ]  # fmt: skip
    assert value(instance, run, "third") == 3


def test_the_run_log_says_which_worker_has_the_step(
    instance: DagsterInstance, app: Celery, woken: list[tuple[Any, str]]
) -> None:
    run = started_run(instance, step_jobs.alone)
    content = message(instance, run, "one").to_json()

    step_execution.execute_step(Delivery(app, hostname="worker@node-3"), content)

    assert f'Executing step "one" on worker@node-3 (process {os.getpid()}).' in said(instance, run.run_id)
    (started,) = (
        event for event in events(instance, run.run_id) if event.event_type_value == "STEP_WORKER_STARTED"
    )
    assert started.engine_event_data.metadata["task"].value == message(instance, run, "one").task_id
    assert woken == [(app, run.run_id)]


def test_the_run_is_woken_when_the_end_stands_in_the_log_and_before_hooks(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next step starts while this one cleans up."""
    monkeypatch.setattr(step_jobs, "hooked_steps", [])
    run = started_run(instance, step_jobs.hooked)
    at_wake_up = []

    def wake() -> None:
        at_wake_up.append((kinds(instance, run.run_id, "one")[-1], list(step_jobs.hooked_steps)))

    step_execution.StepExecution(message(instance, run, "one"), "worker@here", wake).run()

    assert at_wake_up == [("STEP_SUCCESS", [])]
    assert step_jobs.hooked_steps == ["one"]
    assert "HOOK_COMPLETED" in kinds(instance, run.run_id, "one")


def test_each_step_of_a_dynamic_job_is_executed_from_its_message_alone(instance: DagsterInstance) -> None:
    run = started_run(instance, step_jobs.dynamic)
    mappings: Any = {"numbers": {"result": ["n0", "n1", "n2"]}}
    mapped = [f"{name}[n{number}]" for name in ("add_one", "twice") for number in range(3)]
    ready = {StepOutputHandle("numbers", "result", f"n{number}") for number in range(3)}
    ready |= {StepOutputHandle(key, "result") for key in (*mapped, "total")}
    state = KnownExecutionState(dynamic_mappings=mappings, ready_outputs=ready)

    execute(message(instance, run, "numbers"))
    for key in (*mapped, "total", "after_total"):
        execute(message(instance, run, key, state))

    assert "STEP_FAILURE" not in kinds(instance, run.run_id)
    assert value(instance, run, "after_total") == 0 + 1 + 2 + 3 * 2 + 1


def test_a_step_that_fails_is_a_failure_in_the_log_and_wakes_the_run(instance: DagsterInstance) -> None:
    run = started_run(instance, step_jobs.with_a_failure)

    assert execute(message(instance, run, "fail")) == ["woken"]

    assert kinds(instance, run.run_id, "fail")[-1] == "STEP_FAILURE"


def test_a_failing_attempt_of_several_asks_to_be_tried_again(instance: DagsterInstance) -> None:
    """The attempt says so and ends; whether and when there is another one is the run's matter."""
    run = started_run(instance, step_jobs.retrying)

    assert execute(message(instance, run, "stubborn")) == ["woken"]
    assert kinds(instance, run.run_id, "stubborn")[-1] == "STEP_UP_FOR_RETRY"

    # And it knows which attempt it is
    again = KnownExecutionState(previous_retry_attempts={"stubborn": 1})
    execute(message(instance, run, "stubborn", again))
    last = KnownExecutionState(previous_retry_attempts={"stubborn": 2})
    execute(message(instance, run, "stubborn", last))

    ends = [
        kind
        for kind in kinds(instance, run.run_id, "stubborn")
        if kind in ("STEP_UP_FOR_RETRY", "STEP_SUCCESS")
    ]
    assert ends == ["STEP_UP_FOR_RETRY", "STEP_UP_FOR_RETRY", "STEP_SUCCESS"]
    assert value(instance, run, "stubborn") == 2


def test_a_step_leaves_its_process_as_it_was(instance: DagsterInstance) -> None:
    before = Path.cwd()
    run = started_run(instance, step_jobs.disturbing)

    execute(message(instance, run, "disturb"))

    assert kinds(instance, run.run_id, "disturb")[-1] == "STEP_SUCCESS"
    assert Path.cwd() == before
    assert logging.root.manager.disable == logging.NOTSET


def test_the_log_says_whose_threads_still_run_and_that_their_process_is_replaced(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[bool] = []
    monkeypatch.setattr(undisturbed, "replace_process", lambda: replaced.append(True))
    run = started_run(instance, step_jobs.leaving_a_thread)

    execute(message(instance, run, "leave_a_thread"))

    told = kinds(instance, run.run_id, "leave_a_thread")
    assert told[-1] == "ENGINE_EVENT"
    assert "STEP_SUCCESS" in told
    assert said(instance, run.run_id)[-1] == (
        'Step "leave_a_thread" left threads that still run ("poller" of time.sleep). Its process is replaced.'
    )
    assert replaced == [True]


def test_an_interrupted_step_has_done_its_work(instance: DagsterInstance) -> None:
    """Somebody stopped the run: the message must not come back as if the worker had died."""
    run = started_run(instance, step_jobs.with_an_interrupt)

    assert execute(message(instance, run, "interrupted")) == ["woken"]

    assert kinds(instance, run.run_id, "interrupted")[-1] == "STEP_FAILURE"


# --- a step is not executed -------------------------------------------------------------------------------------


def test_a_message_that_comes_twice_executes_its_step_once(instance: DagsterInstance) -> None:
    run = started_run(instance, step_jobs.alone)
    step = message(instance, run, "one")
    execute(step)
    before = kinds(instance, run.run_id)

    # When it comes again, then nothing happens but that the run is told to look: it may have missed the end
    assert execute(step) == ["woken"]
    assert kinds(instance, run.run_id) == before


@pytest.mark.parametrize("kind", [DagsterEventType.RUN_CANCELING, DagsterEventType.RUN_FAILURE])
def test_a_step_of_a_run_that_has_ended_is_not_executed(
    instance: DagsterInstance,
    app: Celery,
    woken: list[tuple[Any, str]],
    kind: DagsterEventType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a run that was ended while its step waited in the queue, by another process
    run = started_run(instance, step_jobs.alone)
    step = message(instance, run, "one")
    end_run(instance, run, kind)
    before = kinds(instance, run.run_id)

    step_execution.execute_step(Delivery(app), step.to_json())

    # Nobody waits for its end: thousands of such steps may come.
    assert woken == []
    assert kinds(instance, run.run_id) == before
    assert "step one of run" in caplog.text
    assert "is skipped: its run is" in caplog.text


def test_a_step_of_a_deleted_run_is_put_aside(
    instance: DagsterInstance, app: Celery, woken: list[tuple[Any, str]]
) -> None:
    run = started_run(instance, step_jobs.alone)
    content = message(instance, run, "one").to_json()
    instance.delete_run(run.run_id)

    step_execution.execute_step(Delivery(app), content)

    (letter,) = dead_letters()
    assert letter["reason"].startswith(f"nobody knows run {run.run_id}")
    assert json.loads(letter["body"]) == content
    assert woken == []


def test_the_status_of_a_run_is_never_a_kept_one(instance: DagsterInstance) -> None:
    """A process keeps runs between steps; whether one has ended it must ask each time."""
    run = started_run(instance, step_jobs.linear)
    second = message(instance, run, "second", outputs("one"))
    execute(message(instance, run, "one"))
    end_run(instance, run, DagsterEventType.RUN_FAILURE)

    execute(second)

    assert kinds(instance, run.run_id, "second") == []


# --- what can't be executed --------------------------------------------------------------------------------------


def test_code_that_can_not_be_loaded_is_the_steps_failure_with_its_reason(
    instance: DagsterInstance, app: Celery, woken: list[tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker whose image lacks a module
    run = started_run(instance, step_jobs.alone)
    step = message(instance, run, "one")

    def lacking(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'pandas'")

    plan_cache._planned.clear()
    monkeypatch.setattr(plan_cache, "recon_job_from_origin", lacking)

    # When the step comes
    step_execution.execute_step(Delivery(app), step.to_json())

    # Then its failure says what and where
    failure = events(instance, run.run_id)[-1]
    assert (failure.event_type_value, failure.step_key) == ("STEP_FAILURE", "one")
    where = f"worker@here (process {os.getpid()})"
    assert failure.message == f'Step "one" failed. It could not be loaded on {where}.'
    assert failure.step_failure_data.error
    assert "No module named 'pandas'" in failure.step_failure_data.error.message
    assert woken == [(app, run.run_id)]
    # And its message is kept for whoever looks after the workers
    (letter,) = dead_letters()
    assert "step one of job alone can't be loaded: No module named 'pandas'" in letter["reason"]


def test_a_step_that_the_workers_code_does_not_have_is_a_failure_and_put_aside(
    instance: DagsterInstance, app: Celery, woken: list[tuple[Any, str]]
) -> None:
    """Workers with older code than the daemon's."""
    run = started_run(instance, step_jobs.alone)
    newer = replace(message(instance, run, "one"), step_key="new_step")

    step_execution.execute_step(Delivery(app), newer.to_json())

    failure = events(instance, run.run_id)[-1]
    assert (failure.event_type_value, failure.step_key) == ("STEP_FAILURE", "new_step")
    assert woken == [(app, run.run_id)]
    assert "step new_step of job alone can't be loaded" in dead_letters()[0]["reason"]


def test_a_resource_that_does_not_start_is_in_the_log_for_the_run_to_decide(
    instance: DagsterInstance,
) -> None:
    """The executor fails the step or tries it again; two who did so would count one failure twice."""
    run = started_run(instance, step_jobs.with_a_broken_resource)

    execute(message(instance, run, "needs_resource"))

    told = kinds(instance, run.run_id)
    assert "RESOURCE_INIT_FAILURE" in told
    assert "STEP_FAILURE" not in told


def test_a_run_whose_step_lacks_a_resource_is_woken(instance: DagsterInstance) -> None:
    """Nothing else would tell it before its next look, seconds later."""
    run = started_run(instance, step_jobs.with_a_broken_resource)

    assert execute(message(instance, run, "needs_resource")) == ["woken"]


@pytest.mark.parametrize("place", ["ledger_of", "planned_job"])
def test_without_the_database_a_message_goes_back_to_its_queue(
    instance: DagsterInstance,
    app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    woken: list[tuple[Any, str]],
    place: str,
) -> None:
    # Given a database that stays away, before or after the step was begun
    run = started_run(instance, step_jobs.alone)
    content = message(instance, run, "one").to_json()

    def away(*_: Any) -> None:
        raise AWAY

    monkeypatch.setattr(step_execution, place, away)

    # When the message comes
    with pytest.raises(Reject) as rejection:
        step_execution.execute_step(Delivery(app), content)

    # Then it goes back (at once: the wait for the database was long), and no end is in the log
    assert rejection.value.requeue is True
    assert "STEP_FAILURE" not in kinds(instance, run.run_id)
    assert woken == []


@pytest.mark.parametrize("at_load", [True, False], ids=["its job is loaded", "it is executed"])
def test_a_database_of_user_codes_own_that_is_away_fails_the_step(
    instance: DagsterInstance,
    app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    woken: list[tuple[Any, str]],
    at_load: bool,
) -> None:
    run = started_run(instance, step_jobs.with_a_warehouse)
    content = message(instance, run, "asks").to_json()
    if at_load:
        monkeypatch.setattr(step_execution, "planned_job", lambda *_: ask_warehouse())

    step_execution.execute_step(Delivery(app), content)

    assert kinds(instance, run.run_id, "asks").count("STEP_FAILURE") == 1
    assert woken == [(app, run.run_id)]
    assert len(dead_letters()) == int(at_load)


def test_a_foreign_message_is_put_aside_and_says_why(app: Celery) -> None:
    step_execution.execute_step(Delivery(app), {"hello": "world"})

    (letter,) = dead_letters()
    assert letter["reason"] == "a message of version None; this code reads 2"
    assert (letter["queue"], letter["worker"], letter["body"]) == (
        "dagster",
        "worker@here",
        '{"hello": "world"}',
    )


# --- helpers --------------------------------------------------------------------------------------------------------


def end_run(instance: DagsterInstance, run: DagsterRun, kind: DagsterEventType) -> None:
    found = instance.get_run_by_id(run.run_id)
    assert found
    if kind is DagsterEventType.RUN_CANCELING:
        instance.report_run_canceling(found)
    else:
        instance.report_run_failed(found)
    ended = instance.get_run_by_id(run.run_id)
    assert ended
    assert ended.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.FAILURE)


def value(instance: DagsterInstance, run: DagsterRun, key: str) -> Any:
    """What Dagster's default IO manager stored for a step: a pickle in the instance's folder."""
    import pickle

    with (Path(instance.storage_directory()) / run.run_id / key / "result").open("rb") as file:
        return pickle.load(file)
