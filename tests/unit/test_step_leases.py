"""One delivery of a step message on the stack's storage: who may execute the step, and when it is given up."""

import os
import signal
import time
from dataclasses import replace
from threading import Event
from typing import Any, NoReturn

import pytest
from celery import Celery
from celery.exceptions import Reject
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    OpExecutionContext,
)

from dagster_stack import tags
from dagster_stack.messaging.messages import StepMessage
from dagster_stack.pool import delivery
from dagster_stack.pool.delivery import _has_worker_of
from dagster_stack.step import interruption, step_execution
from dagster_stack.step.step_execution import StepExecution, execute_step
from dagster_stack.store import connections as database_module
from dagster_stack.store import event_log, lease_renewal
from dagster_stack.store import leases as leases_module
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.leases import Lease, Renewal, Work
from dagster_stack.timing import FOREIGN_CODE_SECS, STALE_SECS
from dagster_stack.worker.lost_processes import ENDED_ITSELF
from tests.unit import eventful_jobs
from tests.unit.clock import Clock
from tests.unit.database_errors import AWAY
from tests.unit.deliveries import Delivery, dead_letters, delayed, waiting
from tests.unit.holders import Database, entry
from tests.unit.runs_by_hand import events, kinds, message, started_run
from tests.waiting import wait_until


@pytest.fixture
def run(instance: DagsterInstance) -> DagsterRun:
    return started_run(instance, eventful_jobs.with_an_event)


@pytest.fixture
def step(instance: DagsterInstance, run: DagsterRun) -> StepMessage:
    return message(instance, run, "eventful")


def ends(instance: DagsterInstance, step: StepMessage) -> list[str]:
    found = kinds(instance, step.run_id, step.step_key)
    return [kind for kind in found if kind in ("STEP_START", "STEP_SUCCESS", "STEP_FAILURE")]


def failure(instance: DagsterInstance, step: StepMessage) -> str:
    """Why a step failed, as its run's log says."""
    (found,) = (event for event in events(instance, step.run_id) if event.is_step_failure)
    assert found.step_failure_data.error
    assert found.message
    assert found.step_failure_data.error.message in found.message
    return found.message


# --- who may execute it ----------------------------------------------------------------------------------------------


def test_a_step_that_a_living_process_has_comes_again_later(
    instance: DagsterInstance, database: Database, app: Celery, step: StepMessage
) -> None:
    # Given a step that another worker executes, whose connection to the broker broke
    database.taken(step.work, "worker@there (process 3)")
    # When its message is delivered here
    execute_step(Delivery(app, queue="heavy"), step.to_json())
    # Then it waits for a moment, unchanged, with its priority, and goes back to the queue that it came from
    (later,) = waiting("heavy.delayed")
    assert delayed("heavy") == [step.to_json()]
    assert later["properties"]["priority"] == 7
    assert later["headers"]["id"] == step.task_id
    assert ends(instance, step) == []


def test_a_step_whose_process_fell_silent_is_executed_by_the_next(
    instance: DagsterInstance, database: Database, app: Celery, step: StepMessage
) -> None:
    database.taken(step.work, "worker@there (process 3)")
    database.silence(step.work, STALE_SECS + 1)

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_START", "STEP_SUCCESS"]
    started = next(
        each for each in events(instance, step.run_id) if "WORKER_STARTED" in each.event_type_value
    )
    assert started.engine_event_data.metadata["execution"].value == 2


def test_a_step_that_ended_gives_its_lease_back(database: Database, app: Celery, step: StepMessage) -> None:
    execute_step(Delivery(app), step.to_json())

    assert step.work not in database.leases.active([step.run_id])
    assert database.taken(step.work, "another").losses == ()


def test_a_step_that_ended_while_its_message_asked_for_it_is_not_executed_again(
    instance: DagsterInstance,
    database: Database,
    app: Celery,
    step: StepMessage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end came after the look into the log, and before the lease was free."""
    look, looks = PooledEventLogStorage.attempt_state, 0

    def executed_meanwhile(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        found = look(*arguments)
        if looks == 1:
            execute_step(Delivery(app, hostname="worker@there"), step.to_json())
        return found

    monkeypatch.setattr(PooledEventLogStorage, "attempt_state", executed_meanwhile)

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_START", "STEP_SUCCESS"]


def take_over(database: Database, work: Work) -> None:
    # Its holder may give a sign of life in between.
    while True:
        database.silence(work, STALE_SECS + 1)
        if database.leases.acquire(work, "another"):
            return


def test_an_execution_that_was_taken_over_reports_nothing_more_and_its_message_is_done(
    instance: DagsterInstance, database: Database, app: Celery, step: StepMessage
) -> None:
    # Given a process that is paused in the middle of a step, until another has it
    eventful_jobs.happenings["eventful"] = [lambda _: take_over(database, step.work)]
    # When it goes on
    execute_step(Delivery(app), step.to_json())
    # Then its end is in no log, and its message is not sent anywhere
    assert ends(instance, step) == ["STEP_START"]
    assert delayed() == dead_letters() == []
    # And the lease of the other one stands
    assert step.work in database.leases.active([step.run_id])


# --- losses -------------------------------------------------------------------------------------------------------------


def lost(database: Database, work: Work, times: int) -> None:
    """Executions of a step that took their workers down."""
    for number in range(times):
        holder = f"worker@node-{number} (process {number})"
        database.taken(work, holder)
        database.leases.mark_lost(work, holder, "signal 9 (SIGKILL)" if number else "killed (out of memory?)")


def test_a_step_that_took_so_many_workers_down_fails_and_names_them(
    instance: DagsterInstance, database: Database, app: Celery, step: StepMessage
) -> None:
    lost(database, step.work, times=3)

    execute_step(Delivery(app), step.to_json())

    told = failure(instance, step)
    assert "It was delivered 3 times, and each time its worker was lost" in told
    assert "worker@node-0 (process 0): killed (out of memory?); worker@node-1 (process 1): signal 9" in told
    assert "MAX_DELIVERIES in .env is the limit" in told
    assert ends(instance, step) == ["STEP_FAILURE"]


@pytest.mark.parametrize(("limit", "end"), [("3", "STEP_SUCCESS"), ("2", "STEP_FAILURE")])
def test_below_the_limit_it_is_executed_again(  # noqa: PLR0917
    instance: DagsterInstance,
    database: Database,
    app: Celery,
    step: StepMessage,
    limit: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAX_DELIVERIES", limit)
    lost(database, step.work, times=2)

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step)[-1] == end


def test_a_step_that_must_not_run_twice_fails_at_the_second_delivery(
    instance: DagsterInstance, database: Database, app: Celery
) -> None:
    run = started_run(instance, eventful_jobs.executed_once)
    step = message(instance, run, "once")
    assert step.redeliver is False
    lost(database, step.work, times=1)

    execute_step(Delivery(app), step.to_json())

    told = failure(instance, step)
    assert f"It must not be executed twice ({tags.REDELIVER})" in told
    assert "worker@node-0 (process 0): killed (out of memory?)" in told
    assert "It may have done its work" in told


def test_a_step_that_must_not_run_twice_runs_when_nobody_had_begun_it(
    instance: DagsterInstance, database: Database, app: Celery
) -> None:
    """A worker that stops hands back what it had not begun: that is no second execution."""
    run = started_run(instance, eventful_jobs.executed_once)
    step = message(instance, run, "once")

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_START", "STEP_SUCCESS"]


@pytest.fixture
def step_once(instance: DagsterInstance) -> StepMessage:
    return message(instance, started_run(instance, eventful_jobs.executed_once), "once")


def begun_and_handed_over(database: Database, app: Celery, step: StepMessage) -> None:
    """A worker has begun a step and stops; its process ends before the step does."""

    def stops(_: OpExecutionContext) -> None:
        (epoch,) = database.execute(
            "SELECT epoch FROM dagster_stack_claims WHERE run_id = :run", run=step.run_id
        )[0]
        lease = Lease(step.work, epoch, "worker@there (process 7)")
        database.leases.release(lease)

    eventful_jobs.happenings[step.step_key] = [stops]
    execute_step(Delivery(app, hostname="worker@there"), step.to_json())


def test_a_step_that_must_not_run_twice_fails_when_the_worker_that_began_it_was_stopped(
    instance: DagsterInstance, database: Database, app: Celery, step_once: StepMessage
) -> None:
    begun_and_handed_over(database, app, step_once)
    assert ends(instance, step_once) == ["STEP_START"]

    execute_step(Delivery(app), step_once.to_json())

    assert ends(instance, step_once) == ["STEP_START", "STEP_FAILURE"]
    told = failure(instance, step_once)
    assert f"It must not be executed twice ({tags.REDELIVER}), and it had begun" in told
    assert 'Executing step "once" on worker@there (process' in told
    assert "its worker was stopped or without the database. It may have done its work" in told


def test_a_step_that_must_not_run_twice_runs_when_its_lease_was_handed_over_before_it_began(
    instance: DagsterInstance, database: Database, app: Celery, step_once: StepMessage
) -> None:
    """As of a worker that lost the database between the lease and the start."""
    database.leases.release(database.taken(step_once.work, "worker@there (process 7)"))

    execute_step(Delivery(app), step_once.to_json())

    assert ends(instance, step_once) == ["STEP_START", "STEP_SUCCESS"]


def test_a_step_that_must_not_run_twice_fails_when_another_process_of_the_same_name_began_it(
    instance: DagsterInstance, database: Database, app: Celery, step_once: StepMessage
) -> None:
    """The processes of a container that was restarted have the numbers of those before them."""

    def ends_with_its_container(_: OpExecutionContext) -> None:
        database.execute(
            "UPDATE dagster_stack_claims SET epoch = epoch + 1 WHERE run_id = :run", run=step_once.run_id
        )

    eventful_jobs.happenings["once"] = [ends_with_its_container]
    execute_step(Delivery(app), step_once.to_json())

    execute_step(Delivery(app), step_once.to_json())

    assert ends(instance, step_once) == ["STEP_START", "STEP_FAILURE"]


@pytest.mark.parametrize(("begins", "end"), [(False, "STEP_SUCCESS"), (True, "STEP_FAILURE")])
def test_of_a_step_that_must_not_run_twice_each_attempt_counts_by_itself(  # noqa: PLR0917
    instance: DagsterInstance,
    database: Database,
    app: Celery,
    step_once: StepMessage,
    begins: bool,
    end: str,
) -> None:
    """An attempt that failed and is tried again did end, as in every executor."""
    # Given a step whose first attempt has failed, and a second one that was handed over
    storage = instance.event_log_storage
    for kind in (DagsterEventType.STEP_START, DagsterEventType.STEP_UP_FOR_RETRY):
        storage.store_event(entry(step_once.run_id, kind, "once"))
    second = replace(step_once, attempt=2)
    database.leases.release(database.taken(second.work, "worker@there (process 7)"))
    if begins:
        storage.store_event(entry(step_once.run_id, DagsterEventType.STEP_RESTARTED, "once"))

    execute_step(Delivery(app), second.to_json())

    assert ends(instance, step_once)[-1] == end


# --- interrupts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every few milliseconds: a test waits for what they bring."""
    monkeypatch.setattr(lease_renewal, "LOOK_SECS", 0.005)
    monkeypatch.setattr(leases_module, "STEP_RENEWAL_SECS", 0.01)


def until_interrupted() -> None:
    """What a step does until somebody stops it."""
    Event().wait(30)
    raise AssertionError("nobody has interrupted the step")


@pytest.mark.usefixtures("quick_signs")
def test_a_step_that_another_process_has_is_interrupted(
    instance: DagsterInstance, database: Database, app: Celery, step: StepMessage
) -> None:
    def is_taken_over(_: OpExecutionContext) -> None:
        take_over(database, step.work)
        until_interrupted()

    eventful_jobs.happenings["eventful"] = [is_taken_over]

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_START"]


@pytest.mark.usefixtures("quick_signs")
def test_a_step_whose_run_is_canceled_is_interrupted_also_without_the_broker(
    instance: DagsterInstance, app: Celery, step: StepMessage, run: DagsterRun
) -> None:
    def is_canceled(_: OpExecutionContext) -> None:
        instance.report_run_canceling(run)
        until_interrupted()

    eventful_jobs.happenings["eventful"] = [is_canceled]

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_START", "STEP_FAILURE"]
    assert "STEP_OUTPUT" not in kinds(instance, step.run_id, "eventful")


@pytest.mark.usefixtures("quick_signs")
def test_a_step_that_does_not_mind_the_interrupt_ends_its_process_and_is_not_executed_again(  # noqa: PLR0917
    instance: DagsterInstance,
    database: Database,
    app: Celery,
    step: StepMessage,
    run: DagsterRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with its runner dead, and without the broker."""
    ended, exit_codes = Event(), list[int]()

    def exit_process(code: int) -> None:
        exit_codes.append(code)
        ended.set()

    monkeypatch.setattr(interruption, "GRACE_SECS", 0.05)
    monkeypatch.setattr(os, "_exit", exit_process)

    def is_canceled_by_force(_: OpExecutionContext) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        instance.report_run_canceled(run)
        assert ended.wait(30)
        # What follows would have ended with the process.
        take_over(database, step.work)

    eventful_jobs.happenings["eventful"] = [is_canceled_by_force]
    execute_step(Delivery(app), step.to_json())
    assert exit_codes == [ENDED_ITSELF]

    # Its message, which comes again, is done
    execute_step(Delivery(app), step.to_json())
    assert ends(instance, step) == ["STEP_START"]
    assert delayed() == dead_letters() == []


@pytest.mark.usefixtures("quick_signs")
@pytest.mark.parametrize("status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE])
def test_hooks_of_a_step_go_on_when_its_run_ends_with_it(
    instance: DagsterInstance,
    app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    status: DagsterRunStatus,
) -> None:
    # Given a run that ends when its last step has, while that step's hook is at work
    run = started_run(instance, eventful_jobs.with_a_hook)
    step = message(instance, run, "eventful")
    signs: list[Renewal] = []
    heard = StepExecution._heard

    def counted(execution: StepExecution, sign: Renewal | None) -> None:
        heard(execution, sign)
        if sign and sign.run_status == status.value:
            signs.append(sign)

    monkeypatch.setattr(StepExecution, "_heard", counted)

    def hook_works(_: Any) -> None:
        if status == DagsterRunStatus.SUCCESS:
            instance.report_dagster_event(
                DagsterEvent(DagsterEventType.PIPELINE_SUCCESS.value, run.job_name), run.run_id
            )
        else:
            instance.report_run_failed(run)
        wait_until(lambda: len(signs) >= 3, 30, "three signs of life since", pause=0.01)

    eventful_jobs.happenings["hook"] = [hook_works]

    # When its process hears that the run has ended
    execute_step(Delivery(app), step.to_json())

    # Then the hook was left alone
    assert "HOOK_COMPLETED" in kinds(instance, step.run_id, "eventful")


# --- a database that is away --------------------------------------------------------------------------------------------


def test_a_step_that_can_not_report_goes_back_to_its_queue_and_never_fails(
    instance: DagsterInstance,
    database: Database,
    app: Celery,
    step: StepMessage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a database that goes away while a step runs, for longer than its process waits
    monkeypatch.setattr(database_module, "time", Clock())
    connect = database_module.patient_connection

    def away(*_: Any) -> NoReturn:
        raise AWAY

    eventful_jobs.happenings["eventful"] = [
        lambda _: monkeypatch.setattr(event_log, "patient_connection", away)
    ]
    # When the step ends
    with pytest.raises(Reject) as rejection:
        execute_step(Delivery(app), step.to_json())
    monkeypatch.setattr(event_log, "patient_connection", connect)
    # Then whoever gets its message next begins at once, and nobody has failed
    assert rejection.value.requeue is True
    assert "STEP_FAILURE" not in ends(instance, step)
    execute_step(Delivery(app, hostname="worker@there"), step.to_json())
    assert ends(instance, step)[-1] == "STEP_SUCCESS"
    assert database.taken(step.work, "another").losses == ()


# --- other code -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step_execution, delivery):
        monkeypatch.setattr(module, "code_version", lambda: "ours")


@pytest.mark.usefixtures("other_code")
def test_a_step_of_other_code_is_handed_back_and_that_is_noted_once(
    instance: DagsterInstance, app: Celery, step: StepMessage
) -> None:
    theirs = replace(step, code="theirs")
    begin = time.time()

    execute_step(Delivery(app), theirs.to_json())

    (later,) = delayed()
    assert later["refused_at"] >= begin
    assert {**later, "refused_at": None} == theirs.to_json()
    # And from then on the first time counts
    again = replace(theirs, refused_at=begin - FOREIGN_CODE_SECS + 10)
    execute_step(Delivery(app), again.to_json())
    assert delayed()[1] == again.to_json()
    assert ends(instance, step) == []


@pytest.mark.usefixtures("other_code")
def test_a_step_for_whose_code_there_is_no_worker_fails_with_both_hashes_and_the_cure(
    instance: DagsterInstance, app: Celery, step: StepMessage
) -> None:
    late = replace(step, code="theirs", refused_at=time.time() - FOREIGN_CODE_SECS - 1)

    execute_step(Delivery(app), late.to_json())

    told = failure(instance, step)
    assert f"No worker with the code of its run has taken it for {FOREIGN_CODE_SECS} s." in told
    assert "The run belongs to code theirs, and this process has code ours. `make deploy` brings" in told
    assert delayed() == []


@pytest.mark.usefixtures("other_code")
@pytest.mark.parametrize("answers", [{"code": "theirs", "queues": ["dagster", "heavy"]}, None])
def test_a_step_whose_workers_are_busy_waits_for_them(
    instance: DagsterInstance,
    app: Celery,
    step: StepMessage,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, Any] | None,
) -> None:
    """Or may have some: while nobody can be asked, nothing is known."""
    monkeypatch.setattr("dagster_stack.pool.delivery.ANSWER_COUNTS_SECS", 1e9)
    _has_worker_of.cache_clear()
    called_up: list[str] = []

    def broadcast(command: str, **options: Any) -> list[dict[str, Any]]:
        called_up.append(command)
        if not answers:
            raise ConnectionResetError("gone")
        return [{"other@there": {"code": "ours", "queues": ["dagster"]}}, {"worker@there": answers}]

    monkeypatch.setattr(app.control, "broadcast", broadcast)
    early = replace(step, code="theirs", refused_at=time.time() - FOREIGN_CODE_SECS + 10)
    late = replace(early, refused_at=time.time() - FOREIGN_CODE_SECS - 1)

    execute_step(Delivery(app), early.to_json())
    assert called_up == []
    # One that comes again every 2 s does not ask each time
    for _ in range(2):
        execute_step(Delivery(app), late.to_json())

    assert called_up == ["roll_call"]
    assert delayed() == [early.to_json(), late.to_json(), late.to_json()]
    assert ends(instance, step) == []


@pytest.mark.usefixtures("other_code")
@pytest.mark.parametrize(
    "answers", [{"code": "theirs", "queues": ["heavy"]}, {"code": "old", "queues": ["dagster"]}, {}]
)
def test_workers_of_another_queue_or_code_are_not_waited_for(
    instance: DagsterInstance,
    app: Celery,
    step: StepMessage,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, Any],
) -> None:
    monkeypatch.setattr(app.control, "broadcast", lambda *_, **__: [{"worker@there": answers}])
    late = replace(step, code="theirs", refused_at=time.time() - FOREIGN_CODE_SECS - 1)

    execute_step(Delivery(app), late.to_json())

    assert "No worker with the code of its run" in failure(instance, step)


@pytest.mark.usefixtures("other_code")
@pytest.mark.parametrize(
    ("of_message", "of_run", "executed"),
    [("theirs", "ours", True), ("ours", "theirs", False), ("", None, True), ("ours", None, True)],
)
def test_what_the_run_says_of_its_code_wins_over_its_messages(  # noqa: PLR0917
    instance: DagsterInstance,
    app: Celery,
    step: StepMessage,
    of_message: str,
    of_run: str | None,
    executed: bool,
) -> None:
    """A run that was on its way when another code was deployed goes on with it."""
    if of_run:
        instance.add_run_tags(step.run_id, {tags.CODE: of_run})

    execute_step(Delivery(app), replace(step, code=of_message).to_json())

    assert ("STEP_SUCCESS" in ends(instance, step)) is executed
    assert bool(delayed()) is not executed
