"""A step that takes longer than it may: interrupted, killed, and failed once with the limit in its error."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, _state
from dagster import DagsterEvent, DagsterInstance, OpExecutionContext, RetryRequested
from dagster._core.execution.plan.execute_step import core_dagster_event_sequence_for_step

from dagster_stack import tags
from dagster_stack.errors import SettingsError
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.messages import StepMessage
from dagster_stack.messaging.task_names import RUN_TASK, STEP_TASK
from dagster_stack.run.executor import run_app
from dagster_stack.settings import CeleryConfig, Settings
from dagster_stack.step import time_limit
from dagster_stack.step.step_execution import StepExecution, execute_step
from dagster_stack.step.time_limit import TimeLimit
from dagster_stack.store.leases import Work
from dagster_stack.tasks import register_tasks
from dagster_stack.worker import request
from dagster_stack.worker.lost_processes import KILLED_AT_LIMIT, LIMIT_SIGNAL, DeathCauses
from scripts.console import ROOT
from tests.unit import eventful_jobs, step_jobs
from tests.unit.deliveries import Delivery, waiting
from tests.unit.driven_runs import executed
from tests.unit.holders import Database
from tests.unit.runs_by_hand import events, kinds, message, started_run

LIMIT = "limit of 0.3 s (tag dagster-stack/timeout of the run)"


@pytest.fixture
def instance(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> DagsterInstance:
    monkeypatch.setattr(eventful_jobs, "happenings", {})
    return instance


def limited(
    instance: DagsterInstance,
    job: Any = eventful_jobs.with_an_event,
    seconds: str = "0.3",
    key: str = "eventful",
) -> StepMessage:
    """The message of a step whose run has a limit."""
    run = started_run(instance, job)
    instance.add_run_tags(run.run_id, {tags.TIMEOUT: seconds})
    found = instance.get_run_by_id(run.run_id)
    assert found
    return message(instance, found, key)


def ends(instance: DagsterInstance, step: StepMessage) -> list[str]:
    wanted = ("STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY")
    return [kind for kind in kinds(instance, step.run_id, step.step_key) if kind in wanted]


def end(instance: DagsterInstance, step: StepMessage) -> DagsterEvent:
    (found,) = (
        each for each in events(instance, step.run_id) if each.is_step_failure or each.is_step_up_for_retry
    )
    return found


def texts(event: DagsterEvent) -> list[str]:
    """An error and its causes."""
    data = event.step_failure_data if event.is_step_failure else event.step_retry_data
    error, found = data.error, []
    while error:
        found.append(error.message)
        error = error.cause
    return found


def takes_long(_: OpExecutionContext) -> None:
    time.sleep(20)


def ends_well(_: OpExecutionContext) -> None:
    try:
        time.sleep(20)
    except BaseException:
        return


def fails_otherwise(_: OpExecutionContext) -> None:
    try:
        time.sleep(20)
    except BaseException:
        raise ValueError("half of it is done") from None


def swallows_errors(_: OpExecutionContext) -> None:
    """As code does that tries a thing again and again, whatever the error."""
    for _try in range(10):
        try:
            time.sleep(20)
        except Exception:
            continue


# --- in time, and late ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_does", [takes_long, ends_well, fails_otherwise, swallows_errors])
def test_a_step_that_takes_longer_fails_once_and_says_the_limit_and_who_set_it(
    instance: DagsterInstance, app: Celery, step_does: Callable[[OpExecutionContext], None]
) -> None:
    """Also one that ends well after its interrupt: it was late."""
    step = limited(instance)
    eventful_jobs.happenings["eventful"] = [step_does]
    began = time.monotonic()

    execute_step(Delivery(app), step.to_json())

    assert time.monotonic() - began < 15
    assert ends(instance, step) == ["STEP_FAILURE"]
    assert any(LIMIT in text for text in texts(end(instance, step)))
    # Its message, which may come again, is done
    execute_step(Delivery(app), step.to_json())
    assert ends(instance, step) == ["STEP_FAILURE"]


def test_a_retry_policy_applies_as_to_any_failure(instance: DagsterInstance, app: Celery) -> None:
    step = limited(instance, eventful_jobs.with_an_event_and_a_policy)
    eventful_jobs.happenings["eventful"] = [takes_long]

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_UP_FOR_RETRY"]
    assert any(LIMIT in text for text in texts(end(instance, step)))


def test_a_retry_that_the_step_asks_for_is_made(instance: DagsterInstance, app: Celery) -> None:
    def asks(_: OpExecutionContext) -> None:
        try:
            time.sleep(20)
        except BaseException:
            raise RetryRequested(max_retries=3, seconds_to_wait=7) from None

    step = limited(instance)
    eventful_jobs.happenings["eventful"] = [asks]

    execute_step(Delivery(app), step.to_json())

    assert end(instance, step).step_retry_data.seconds_to_wait == 7
    assert any(LIMIT in text for text in texts(end(instance, step)))


def test_a_step_in_time_is_left_alone_and_so_are_its_hooks_and_the_next_step(
    instance: DagsterInstance, app: Celery
) -> None:
    step = limited(instance, eventful_jobs.with_a_hook, seconds="2")
    eventful_jobs.happenings["hook"] = [lambda _: time.sleep(2.5)]
    execute_step(Delivery(app), step.to_json())
    following = message(instance, started_run(instance, step_jobs.alone), "one")
    execute_step(Delivery(app), following.to_json())

    assert ends(instance, step) == ends(instance, following) == ["STEP_SUCCESS"]
    assert "HOOK_COMPLETED" in kinds(instance, step.run_id)


def test_a_resource_that_takes_longer_fails_its_step(instance: DagsterInstance, app: Celery) -> None:
    """Dagster lets no interrupt into a resource that starts: it is heard after it, or its process is killed."""
    step = limited(instance, eventful_jobs.with_a_slow_resource, key="needs_resource")
    eventful_jobs.happenings["resource"] = [lambda _: time.sleep(0.8)]

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_FAILURE"]
    assert LIMIT in texts(end(instance, step))[0]


def test_a_limit_that_passes_where_dagster_keeps_interrupts_for_later_is_none_the_less_the_error(
    instance: DagsterInstance, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = limited(instance)
    execute = core_dagster_event_sequence_for_step

    def slowly(context: Any) -> Iterator[DagsterEvent]:
        time.sleep(0.6)
        yield from execute(context)

    monkeypatch.setattr(time_limit, "core_dagster_event_sequence_for_step", slowly)

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_FAILURE"]
    assert any(LIMIT in text for text in texts(end(instance, step)))


def test_a_limit_that_passes_as_the_step_ends_is_no_interrupt_of_its_run(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = limited(instance, seconds="30")
    is_met = time_limit.Deadline.is_met

    def just(deadline: time_limit.Deadline) -> None:
        is_met(deadline)
        deadline._interrupt()

    monkeypatch.setattr(time_limit.Deadline, "is_met", just)

    execution = StepExecution(step, "worker@here", lambda: None)
    execution.run()

    assert ends(instance, step) == ["STEP_SUCCESS"]
    assert not execution.was_interrupted


def test_the_interrupt_of_a_canceled_run_is_no_time_limit(instance: DagsterInstance, app: Celery) -> None:
    step = limited(instance, seconds="30")
    eventful_jobs.happenings["eventful"] = [lambda _: signal.raise_signal(signal.SIGINT)]

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_FAILURE"]
    assert not any("limit" in text for text in texts(end(instance, step)))


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "key", "expected"),
    [
        ("with_an_event", "eventful", ["STEP_FAILURE"]),
        ("with_an_event_and_a_policy", "eventful", ["STEP_UP_FOR_RETRY"]),
        ("executed_once", "once", ["STEP_FAILURE"]),
    ],
)
def test_who_gets_the_message_of_a_killed_step_reports_its_failure(  # noqa: PLR0917
    instance: DagsterInstance, database: Database, app: Celery, job: str, key: str, expected: list[str]
) -> None:
    # Given a step whose process the kernel has ended, as its worker has told
    step = limited(instance, getattr(eventful_jobs, job), key=key)
    database.taken(step.work, "worker@there (process 3)")
    database.leases.mark_lost(step.work, "worker@there (process 3)", KILLED_AT_LIMIT)

    # When its message comes again
    execute_step(Delivery(app), step.to_json())

    # Then it is not executed again
    assert ends(instance, step) == expected
    assert "STEP_START" not in kinds(instance, step.run_id)
    (text,) = texts(end(instance, step))
    assert LIMIT in text
    assert "its process was killed" in text


KEEPS_THE_LOCK = """
import re, sys
from dagster_stack.step.time_limit import KernelTimer
timer = KernelTimer()
timer.set(0.3)
if sys.argv[1] == "in time":
    timer.cancel()
    timer.cancel()
    import time; time.sleep(0.6)
elif sys.argv[1] == "ignored":
    import signal, threading, time
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    threading.Timer(0.1, timer.insist).start()
    time.sleep(30)
else:
    re.match("(a+)+$", "a" * 60 + "b")
"""


@pytest.mark.parametrize(
    ("when", "code"), [("late", -LIMIT_SIGNAL), ("ignored", -LIMIT_SIGNAL), ("in time", 0)]
)
def test_the_kernel_ends_a_process_that_keeps_pythons_global_lock_or_ignores_all_signals(
    when: str, code: int
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KEEPS_THE_LOCK, when]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == code


def test_the_end_by_the_kernel_is_told_from_others() -> None:
    assert DeathCauses().of_exit(-LIMIT_SIGNAL) == KILLED_AT_LIMIT


def test_with_the_process_of_an_eager_run_its_step_is_lost(database: Database) -> None:
    run, step, other = Work("run-eager"), Work("run-eager", "a", 1), Work("run-eager", "b", 1)
    for work, holder in ((run, "runner@a (process 1)"), (step, "runner@a (process 1)"), (other, "another")):
        database.taken(work, holder)

    database.leases.mark_lost(run, "runner@a (process 1)", KILLED_AT_LIMIT)

    for work in (run, step):
        assert [loss.reason for loss in database.taken(work, "next").losses] == [KILLED_AT_LIMIT]
    assert database.leases.acquire(other, "next") is None


# --- who says so ----------------------------------------------------------------------------------------------------

OP, RUN = {tags.TIMEOUT: "10"}, {tags.TIMEOUT: "20"}


@pytest.mark.parametrize(
    ("step_tags", "run_tags", "of_celery", "expected"),
    [
        ({}, {}, None, None),
        ({}, {}, [None, None], None),
        (OP, RUN, [5, 3], (10, 14, "tag dagster-stack/timeout of the op")),
        ({}, RUN, [5, 3], (20, 24, "tag dagster-stack/timeout of the run")),
        ({tags.TIMEOUT: "soon"}, RUN, None, (20, 24, "tag dagster-stack/timeout of the run")),
        ({}, {}, [60, None], (60, 64, "task_time_limit")),
        ({}, {}, [60, 30], (30, 60, "task_soft_time_limit")),
        ({}, {}, [None, 30], (30, 34, "task_soft_time_limit")),
        ({}, {}, [60, 90], (60, 64, "task_time_limit")),
    ],
)
def test_the_nearest_says_so(
    step_tags: dict[str, str],
    run_tags: dict[str, str],
    of_celery: Sequence[float | None] | None,
    expected: tuple[float, float, str] | None,
) -> None:
    assert TimeLimit.of(step_tags, run_tags, of_celery) == (TimeLimit(*expected) if expected else None)


@pytest.mark.parametrize(
    "text", ["", " ", "abc", "0", "0.0", "-5", "nan", "inf", "1e9", "600s", "1:00", "٣", "1_0"]
)
def test_what_is_no_number_of_seconds_counts_as_not_set(text: str) -> None:
    assert tags.timeout({tags.TIMEOUT: text}, {}) is None


@pytest.mark.parametrize(
    ("text", "value"), [("600", 600), ("0.5", 0.5), (" 7 ", 7), ("999999999999", 1e12 - 1)]
)
def test_seconds_may_have_decimals(text: str, value: float) -> None:
    assert tags.seconds(text) == value


def test_the_runs_log_warns_of_a_limit_that_has_no_effect(instance: DagsterInstance) -> None:
    config = {"config_source": {"task_always_eager": True}}
    result = executed(instance, eventful_jobs.with_wrong_timeouts, config)

    assert result.succeeded
    assert result.said(f"The tag {tags.TIMEOUT} of the run is '-5'")
    assert result.said(f"The tag {tags.TIMEOUT} of step \"soon\" is 'soon'")


def test_a_limit_beyond_all_clocks_is_none(instance: DagsterInstance, app: Celery) -> None:
    step = limited(instance, seconds="999999999999")

    execute_step(Delivery(app), step.to_json())

    assert ends(instance, step) == ["STEP_SUCCESS"]


def test_an_eager_step_has_the_same_limit(instance: DagsterInstance) -> None:
    eventful_jobs.happenings["eventful"] = [takes_long]
    config = {"config_source": {"task_always_eager": True, "task_time_limit": 2}}

    result = executed(instance, eventful_jobs.with_an_event_and_a_policy, config)

    assert result.succeeded
    assert result.ends()["eventful"] == ["STEP_UP_FOR_RETRY", "STEP_SUCCESS"]


# --- Celery's own -----------------------------------------------------------------------------------------------------


def test_celerys_limit_of_a_message_is_its_steps(instance: DagsterInstance, app: Celery) -> None:
    step = message(instance, started_run(instance, eventful_jobs.with_an_event), "eventful")
    eventful_jobs.happenings["eventful"] = [takes_long]
    delivery = Delivery(app)
    delivery.request.timelimit = [0.3, None]

    execute_step(delivery, step.to_json())

    assert any("limit of 0.3 s (task_time_limit)" in text for text in texts(end(instance, step)))


def test_a_message_that_is_delayed_keeps_its_limit(
    instance: DagsterInstance, database: Database, app: Celery
) -> None:
    step = message(instance, started_run(instance, eventful_jobs.with_an_event), "eventful")
    database.taken(step.work, "worker@there (process 3)")
    delivery = Delivery(app)
    delivery.request.timelimit = [60, 30]

    execute_step(delivery, step.to_json())

    (later,) = waiting("dagster.delayed")
    assert later["headers"]["timelimit"] == [60, 30]


def test_runs_have_no_limit_and_stock_steps_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Celery gives the tasks of one app to each later one of the process.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    settings = Settings.from_environment({"DAGSTER_HOME": str(tmp_path)})
    config = CeleryConfig(
        broker="memory://", config_source={"task_time_limit": 60, "task_soft_time_limit": 30}
    )
    app = make_app(config, settings)
    register_tasks(app)
    app.finalize()
    worker = SimpleNamespace(
        app=app, pool=SimpleNamespace(options={"timeout": 60, "soft_timeout": 30, "x": 1})
    )

    request.lift_limits(instance=worker)

    for name in (STEP_TASK, RUN_TASK, "execute_job", "resume_job"):
        assert app.tasks[name].time_limit is app.tasks[name].soft_time_limit is None
    assert (app.tasks["execute_plan"].time_limit, app.tasks["execute_plan"].soft_time_limit) == (60, 30)
    assert worker.pool.options == {"timeout": None, "soft_timeout": None, "x": 1}


@pytest.mark.parametrize("value", ["abc", 0, -5, True, [5], "60"])
def test_a_limit_of_celerys_that_is_no_number_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    with pytest.raises(SettingsError, match=r"task_time_limit must be a number of seconds above 0"):
        run_app({"config_source": {"task_time_limit": value}})
    assert os.environ["CELERY_BROKER_URL"]
