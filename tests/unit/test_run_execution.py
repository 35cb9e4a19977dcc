"""One delivery of a run message on a runner: whether the run is driven, from where, and what becomes of the message."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, cast

import pytest
from celery import Celery, Task
from celery.exceptions import Reject
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.events import JobFailureData, RunFailureReason
from dagster_shared.error import SerializableErrorInfo

from dagster_stack import tags
from dagster_stack.messaging.messages import RunMessage, step_task_id
from dagster_stack.messaging.task_names import RUN_TASK
from dagster_stack.pool import delivery as delivery_module
from dagster_stack.project import defaults
from dagster_stack.run import run_execution, termination
from dagster_stack.run.run_execution import LOSSES_SECS, MOST_LOSSES
from dagster_stack.store import lease_renewal
from dagster_stack.store import leases as leases_module
from dagster_stack.store.leases import Work
from dagster_stack.timing import FOREIGN_CODE_SECS, STALE_SECS
from tests.unit import default_jobs, eventful_jobs, step_jobs
from tests.unit.clock import Clock
from tests.unit.database_errors import AWAY, ask_warehouse
from tests.unit.deliveries import (
    Delivery,
    dead_letters,
    delayed,
    empty_the_memory,
    memory_app,
    refuse_dead_letters,
)
from tests.unit.driven_runs import Workers, announced
from tests.unit.holders import Database
from tests.unit.runs_by_hand import kinds, message, said, started_run

STARTING, STARTED = DagsterRunStatus.STARTING, DagsterRunStatus.STARTED


@pytest.fixture
def instance(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> DagsterInstance:
    monkeypatch.setattr(eventful_jobs, "happenings", {})
    return instance


@pytest.fixture
def app(tmp_path: Path, workers: Workers) -> Iterator[Celery]:
    app = memory_app(tmp_path)
    yield app
    app.close()
    empty_the_memory()


class Runner:
    """A runner's process that gets messages; `interrupted` while its run waits."""

    def __init__(self, app: Celery, instance: DagsterInstance) -> None:
        self._app, self._instance = app, instance

    def gets(self, content: Any, name: str = "runner@a") -> None:
        delivery = Delivery(self._app, RUN_TASK, hostname=name, queue="runs")
        run_execution.execute_run(cast(Task, delivery), content)

    def drives(self, run: DagsterRun, name: str = "runner@a") -> None:
        self.gets(RunMessage(run.run_id, "").to_json(), name)

    def status(self, run: DagsterRun) -> DagsterRunStatus:
        found = self._instance.get_run_by_id(run.run_id)
        assert found
        return found.status


@pytest.fixture
def runner(app: Celery, instance: DagsterInstance) -> Runner:
    return Runner(app, instance)


# --- whether it is driven ------------------------------------------------------------------------------------------


def test_a_run_is_driven_to_its_end_and_its_lease_given_back(
    instance: DagsterInstance, runner: Runner, workers: Workers, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.SUCCESS
    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert database.leases.active([run.run_id]) == set()


@pytest.mark.parametrize(
    "status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
)
def test_a_run_that_has_ended_is_left_as_it_is(
    instance: DagsterInstance, runner: Runner, workers: Workers, status: DagsterRunStatus
) -> None:
    run = started_run(instance, step_jobs.linear, status=status)

    runner.drives(run)

    assert runner.status(run) == status
    assert workers.sent == []
    assert delayed("runs") == dead_letters() == []


def test_a_run_that_a_living_runner_has_comes_again_later(
    instance: DagsterInstance, runner: Runner, workers: Workers, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear)
    database.taken(Work(run.run_id), "runner@b")

    runner.drives(run)

    assert delayed("runs") == [RunMessage(run.run_id, "").to_json()]
    assert workers.sent == []
    assert runner.status(run) == STARTED


def test_a_run_whose_runner_died_goes_on_where_it_was(
    instance: DagsterInstance, runner: Runner, workers: Workers, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear)
    database.taken(Work(run.run_id), "runner@b")
    database.silence(Work(run.run_id), STALE_SECS + 1)
    announced(instance, run, "one")
    workers.queue.append((5, message(instance, run, "one")))

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.SUCCESS
    assert workers.sent == [("second", 1), ("third", 1)]
    assert "Going on with this run where its earlier process stopped." in said(instance, run.run_id)


def test_a_run_that_is_being_canceled_and_has_nobody_is_canceled_with_its_steps(
    instance: DagsterInstance, runner: Runner, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.wide, status=DagsterRunStatus.CANCELING)
    announced(instance, run, "step_00", "step_01")

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.CANCELED
    (revoked,) = workers.revoked
    assert set(revoked) == {step_task_id(run.run_id, key, 1) for key in ("step_00", "step_01")}
    assert workers.sent == []


def test_a_run_that_was_canceled_by_force_while_its_runner_was_dead_has_its_steps_killed(
    instance: DagsterInstance,
    runner: Runner,
    workers: Workers,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupts they get from their own process, which saw the run's end."""
    monkeypatch.setattr(termination, "time", Clock())
    run = started_run(instance, step_jobs.wide, status=DagsterRunStatus.CANCELED)
    database.taken(Work(run.run_id, "step_00", 1), "worker@a (process 1)")

    runner.drives(run)

    assert workers.killed == [[step_task_id(run.run_id, "step_00", 1)]]
    assert runner.status(run) == DagsterRunStatus.CANCELED


def test_a_run_that_takes_its_runners_down_fails_and_names_them(
    instance: DagsterInstance, runner: Runner, workers: Workers, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear)
    for number in range(MOST_LOSSES):
        database.taken(Work(run.run_id), f"runner@{number}")
        database.leases.mark_lost(Work(run.run_id), f"runner@{number}", "killed (out of memory?)")

    runner.drives(run)

    assert MOST_LOSSES == 10
    assert runner.status(run) == DagsterRunStatus.FAILURE
    (told,) = (
        line for line in said(instance, run.run_id) if "It lost its runner 10 times within a day" in line
    )
    assert "runner@0: killed (out of memory?); runner@1: killed" in told
    assert workers.sent == []


def test_a_run_of_weeks_may_lose_more_runners_than_one_of_a_day(
    instance: DagsterInstance, runner: Runner, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear)
    for number in range(MOST_LOSSES):
        database.taken(Work(run.run_id), f"runner@{number}")
        database.leases.mark_lost(Work(run.run_id), f"runner@{number}", "killed")
    database.execute(
        "UPDATE dagster_stack_claims SET losses = jsonb_set(losses, '{0,at}', to_jsonb(extract(epoch FROM now()) - :day))"
        " WHERE run_id = :run",
        run=run.run_id,
        day=LOSSES_SECS,
    )

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.SUCCESS


# --- other executors -------------------------------------------------------------------------------------------------


def test_a_run_of_another_executor_is_executed_here(instance: DagsterInstance, runner: Runner) -> None:
    run = started_run(instance, eventful_jobs.of_another_executor, status=STARTING)

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.SUCCESS


@pytest.mark.parametrize(
    ("dies", "reason"),
    [(True, "Its runner was lost: runner@b: killed (out of memory?)."), (False, "Its runner was stopped.")],
)
def test_a_run_of_another_executor_that_lost_its_runner_fails_with_that_reason(
    instance: DagsterInstance, runner: Runner, database: Database, dies: bool, reason: str
) -> None:
    """Its steps were part of that process: nobody can go on with them."""
    run = started_run(instance, eventful_jobs.of_another_executor)
    lease = database.taken(Work(run.run_id), "runner@b")
    if dies:
        database.leases.mark_lost(lease.work, "runner@b", "killed (out of memory?)")
    else:
        database.leases.release(lease)

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.FAILURE
    (told,) = (line for line in said(instance, run.run_id) if reason in line)
    assert "run_retries in dagster.yaml" in told
    assert "STEP_START" not in kinds(instance, run.run_id)


@pytest.mark.parametrize(
    ("job", "config", "cause"),
    [
        (eventful_jobs.of_another_executor, {}, 'by its executor "in_process"'),
        (default_jobs.wide, {"in_process": {}}, "by `in_process` in its config"),
        (default_jobs.in_process_by_its_config, {}, "by `in_process` in its config"),
    ],
)
def test_a_run_whose_steps_are_executed_here_says_so_once(
    instance: DagsterInstance, runner: Runner, job: Any, config: Any, cause: str
) -> None:
    defaults.use()
    run = started_run(instance, job, {"execution": {"config": config}} if config else {}, status=STARTING)

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.SUCCESS
    (told,) = (line for line in said(instance, run.run_id) if "use no workers" in line)
    assert cause in told
    assert "STEP_WORKER_STARTING" not in kinds(instance, run.run_id)


def test_a_run_of_workers_says_nothing_of_where_its_steps_are(
    instance: DagsterInstance, runner: Runner, workers: Workers
) -> None:
    defaults.use()
    run = started_run(instance, default_jobs.chained, status=STARTING)

    runner.drives(run)

    assert workers.keys == ["one", "add_one"]
    assert not [line for line in said(instance, run.run_id) if "workers" in line]


def test_a_run_that_is_executed_here_by_its_config_is_not_resumed(
    instance: DagsterInstance, runner: Runner, database: Database
) -> None:
    """Its steps ended with the process that executed them."""
    defaults.use()
    run = started_run(instance, default_jobs.in_process_by_its_config)
    database.leases.release(database.taken(Work(run.run_id), "runner@b"))

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.FAILURE
    assert any("Its runner was stopped." in line for line in said(instance, run.run_id))


@pytest.mark.parametrize(
    ("reason", "told"), [(RunFailureReason.RUN_EXCEPTION, 1), (RunFailureReason.STEP_FAILURE, 0)]
)
def test_what_ended_a_run_is_told_in_its_log_unless_a_step_did(
    instance: DagsterInstance,
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    reason: RunFailureReason,
    told: int,
) -> None:
    run = started_run(instance, eventful_jobs.of_another_executor, status=STARTING)
    error = SerializableErrorInfo("AssertionError: daemonic processes", [], "AssertionError")
    failure = DagsterEvent(
        event_type_value=DagsterEventType.RUN_FAILURE.value,
        job_name=run.job_name,
        event_specific_data=JobFailureData(error, failure_reason=reason),
    )
    monkeypatch.setattr(run_execution, "core_execute_run", lambda *_, **__: iter([failure]))

    runner.drives(run)

    lines = [line for line in said(instance, run.run_id) if "daemonic processes" in line]
    assert len(lines) == told


# --- while it is driven -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every few milliseconds: a test waits for what they bring."""
    monkeypatch.setattr(lease_renewal, "LOOK_SECS", 0.005)
    monkeypatch.setattr(leases_module, "RUN_RENEWAL_SECS", 0.01)


def while_it_waits(workers: Workers, happens: Callable[[], object]) -> None:
    """Something happens while the run waits for its steps, which no worker executes."""
    happened: list[object] = []

    def wait(timeout: float) -> bool:
        if not happened:
            happened.append(happens())
        # What follows comes from another thread.
        assert not Event().wait(0.005)
        return False

    workers.wait = wait  # type: ignore[method-assign]


@pytest.mark.usefixtures("quick_signs")
def test_a_runner_that_stops_hands_its_run_over_with_all_its_steps(
    instance: DagsterInstance, runner: Runner, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run whose step is in its queue
    run = started_run(instance, step_jobs.linear, status=STARTING)
    leaving: list[bool] = []
    monkeypatch.setattr(run_execution, "is_leaving", lambda: bool(leaving))
    work = workers.wait
    while_it_waits(workers, lambda: leaving.append(True))

    # When its runner is told to stop
    with pytest.raises(Reject) as rejection:
        runner.drives(run)

    # Then its message goes back, its steps go on, and nothing has failed
    assert rejection.value.requeue is True
    assert runner.status(run) == STARTED
    assert workers.revoked == workers.killed == []
    # And the next runner begins at once
    leaving.clear()
    workers.wait = work  # type: ignore[method-assign]
    runner.drives(run, "runner@b")
    assert runner.status(run) == DagsterRunStatus.SUCCESS
    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]


@pytest.mark.usefixtures("quick_signs")
def test_a_run_that_somebody_cancels_is_ended_within_its_next_sign_of_life(
    instance: DagsterInstance, runner: Runner, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)
    while_it_waits(workers, lambda: instance.report_run_canceling(run))

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.CANCELED
    assert workers.revoked == [[step_task_id(run.run_id, "one", 1)]]


@pytest.mark.usefixtures("quick_signs")
def test_a_runner_that_lost_its_run_ends_nothing(
    instance: DagsterInstance, runner: Runner, workers: Workers, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def is_taken_over() -> None:
        database.silence(Work(run.run_id), STALE_SECS + 1)
        # A sign of life may have come in between.
        while not database.leases.acquire(Work(run.run_id), "runner@b"):
            database.silence(Work(run.run_id), STALE_SECS + 1)

    while_it_waits(workers, is_taken_over)

    runner.drives(run)

    assert runner.status(run) == STARTED
    assert workers.revoked == []
    assert Work(run.run_id) in database.leases.active([run.run_id])
    assert delayed("runs") == dead_letters() == []


def test_without_the_database_a_run_goes_back_to_its_queue(
    instance: DagsterInstance,
    runner: Runner,
    workers: Workers,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def away(timeout: float) -> NoReturn:
        cast(Any, instance.event_log_storage)._session.given_up = True
        raise AWAY

    workers.wait = away  # type: ignore[method-assign]

    with pytest.raises(Reject) as rejection:
        runner.drives(run)

    assert rejection.value.requeue is True
    assert runner.status(run) == STARTED
    assert workers.revoked == []
    assert database.taken(Work(run.run_id), "runner@b").losses == ()


# --- other code -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def of_other_code(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> DagsterRun:
    for module in (run_execution, delivery_module):
        monkeypatch.setattr(module, "code_version", lambda: "ours")
    run = started_run(instance, step_jobs.linear, status=STARTING)
    instance.add_run_tags(run.run_id, {tags.CODE: "theirs"})
    return run


def test_a_run_of_other_code_is_handed_back(
    runner: Runner, workers: Workers, of_other_code: DagsterRun
) -> None:
    runner.drives(of_other_code)

    (later,) = delayed("runs")
    assert later["run_id"] == of_other_code.run_id
    assert later["refused_at"]
    assert runner.status(of_other_code) == STARTING
    assert workers.sent == []


def test_a_run_for_whose_code_there_is_no_runner_goes_on_with_this_one(
    instance: DagsterInstance, runner: Runner, of_other_code: DagsterRun
) -> None:
    late = RunMessage(of_other_code.run_id, "theirs", refused_at=time.time() - FOREIGN_CODE_SECS - 1)

    runner.gets(late.to_json())

    assert runner.status(of_other_code) == DagsterRunStatus.SUCCESS
    found = instance.get_run_by_id(of_other_code.run_id)
    assert found
    assert found.tags[tags.CODE] == "ours"
    told = "No runner with its code theirs is left: it goes on with ours."
    assert said(instance, of_other_code.run_id).count(told) == 1


def test_a_run_whose_runner_is_busy_waits_for_it(
    app: Celery,
    runner: Runner,
    workers: Workers,
    of_other_code: DagsterRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        app.control, "broadcast", lambda *_, **__: [{"runner@b": {"code": "theirs", "queues": ["runs"]}}]
    )
    late = RunMessage(of_other_code.run_id, "theirs", refused_at=time.time() - FOREIGN_CODE_SECS - 1)

    runner.gets(late.to_json())

    assert delayed("runs") == [late.to_json()]
    assert runner.status(of_other_code) == STARTING
    assert workers.sent == []


# --- poison ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 1},
        {"more": "of it"},
        {"run_id": None},
        {"run_id": "a\0b"},
        {"run_id": "nobody's"},
        {"refused_at": "yesterday"},
    ],
    ids=str,
)
def test_a_message_that_names_no_run_is_put_aside(runner: Runner, wrong: dict[str, Any]) -> None:
    runner.gets({**RunMessage("a-run", "").to_json(), **wrong})

    (letter,) = dead_letters()
    assert letter["reason"]
    assert (letter["queue"], letter["task"]) == ("runs", RUN_TASK)


def test_while_the_broker_takes_no_dead_letters_a_runs_message_goes_back_to_its_queue(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_dead_letters(monkeypatch)

    with pytest.raises(Reject) as rejection:
        runner.gets({**RunMessage("a-run", "").to_json(), "version": 99})

    assert rejection.value.requeue is True


@pytest.mark.parametrize("told", [True, False])
def test_an_error_of_dagsters_is_told_by_the_run_or_else_by_a_dead_letter(
    instance: DagsterInstance, runner: Runner, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def fails(*_: Any, **__: Any) -> NoReturn:
        if told:
            instance.report_run_failed(run)
        raise LookupError("out of order")

    monkeypatch.setattr(run_execution, "core_execute_run", fails)

    runner.drives(run)

    assert [("out of order" in letter["reason"]) for letter in dead_letters()] == ([] if told else [True])


@pytest.mark.parametrize("ended", [True, False])
def test_an_error_of_the_driving_process_calls_steps_back_only_when_the_run_has_ended(
    instance: DagsterInstance, runner: Runner, workers: Workers, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def fails(*_: Any, **__: Any) -> NoReturn:
        announced(instance, run, "one")
        if ended:
            instance.report_run_failed(run)
        raise LookupError("out of order")

    monkeypatch.setattr(run_execution, "core_execute_run", fails)

    runner.drives(run)

    assert workers.revoked == ([[step_task_id(run.run_id, "one", 1)]] if ended else [])


def test_a_run_that_is_handed_back_again_and_again_fails_with_the_reasons(
    instance: DagsterInstance, runner: Runner, database: Database
) -> None:
    run = started_run(instance, step_jobs.linear)
    for number in range(MOST_LOSSES):
        lease = database.taken(Work(run.run_id), f"runner@{number}")
        database.leases.release(lease, f"an error that it can't report ({number})")

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.FAILURE
    assert any("runner@9: an error that it can't report (9)" in line for line in said(instance, run.run_id))


def test_a_run_whose_job_is_gone_fails_and_its_message_is_put_aside(
    instance: DagsterInstance, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def gone(_: Any) -> NoReturn:
        raise ModuleNotFoundError("No module named 'pipelines.old'")

    monkeypatch.setattr(run_execution, "recon_job_from_origin", gone)

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.FAILURE
    assert any("Job linear can't be loaded by the runner." in line for line in said(instance, run.run_id))
    (letter,) = dead_letters()
    assert "No module named 'pipelines.old'" in letter["reason"]


def test_a_database_of_user_codes_own_that_is_away_while_the_job_is_loaded_fails_the_run(
    instance: DagsterInstance, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)
    monkeypatch.setattr(run_execution, "recon_job_from_origin", lambda _: ask_warehouse())

    runner.drives(run)

    assert runner.status(run) == DagsterRunStatus.FAILURE
    assert len(dead_letters()) == 1


def test_a_database_that_goes_away_while_the_job_is_loaded_fails_no_run(
    instance: DagsterInstance, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def away(_: Any) -> NoReturn:
        raise AWAY

    monkeypatch.setattr(run_execution, "recon_job_from_origin", away)

    with pytest.raises(Reject):
        runner.drives(run)

    assert runner.status(run) == STARTING
    assert dead_letters() == []
