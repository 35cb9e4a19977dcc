"""Steps that take longer than they may, and runs whose process executes them itself."""

from collections import Counter
from typing import Any

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec, naps
from tests.stack.executor_jobs.queues import OWN
from tests.stack.stack import Stack
from tests.waiting import wait_until

EAGER: dict[str, Any] = {"execution": {"config": {"config_source": {"task_always_eager": True}}}}
OF_CELERY: dict[str, Any] = {"execution": {"config": {"config_source": {"task_time_limit": 1}}}}
TIMEOUT = "dagster-stack/timeout"
#: Longer than an own worker's `--time-limit`.
LONG_SECS = 4


@pytest.fixture(scope="module")
def begun(stack: Stack, jobs: AdHoc) -> dict[str, str]:
    """Runs that were begun at once, by name; they end while the tests look at them one by one."""
    late, of_celery = jobs.begin(
        Spec("late", tags={TIMEOUT: "2"}), Spec("late", OF_CELERY, ops=["of_its_run"])
    )
    eager = runs.launch(stack, "parallel_pipeline", config=EAGER)
    return {"late": late, "of_celery": of_celery, "eager": eager}


@pytest.fixture(scope="module")
def late(stack: Stack, begun: dict[str, str]) -> str:
    assert stack.wait_for_run(begun["late"])["status"] == "FAILURE"
    return begun["late"]


def errors(stack: Stack, run_id: str, kind: str) -> dict[str, str]:
    """Message and error of events of a kind, by step."""
    return {
        event["stepKey"]: f"{event['message']} {event.get('error')}"
        for event in stack.events(run_id)
        if event.get("eventType") == kind
    }


def test_a_step_that_takes_longer_fails_once_and_says_the_limit(stack: Stack, late: str) -> None:
    # Given steps with a limit: one sleeps, one ends well after its interrupt, one has its run's limit
    # When the run has ended
    failures = errors(stack, late, "STEP_FAILURE")

    # Then each failed once, and says how long it may take and who said so
    counted = runs.count_events(stack, late, "STEP_FAILURE")
    assert counted == Counter(dict.fromkeys(["sleeps", "ends_well", "goes_on", "of_its_run"], 1))
    for step in ("sleeps", "ends_well"):
        assert f"longer than its limit of 1 s (tag {TIMEOUT} of the op)" in failures[step], failures[step]
    assert f"longer than its limit of 2 s (tag {TIMEOUT} of the run)" in failures["of_its_run"]
    # And none was executed again, but for the one with a policy (which is then said to be restarted)
    begun = runs.count_events(stack, late, "STEP_START")
    assert set(begun.values()) == {1}, begun
    assert runs.count_events(stack, late, "STEP_RESTARTED") == {"keeps_the_lock": 1}


def test_a_step_that_goes_on_after_its_interrupt_is_killed(stack: Stack, late: str) -> None:
    # Given a step that minds no interrupt
    # When the run has ended
    # Then its process was killed, which the log tells, and the step failed by its limit
    assert "its process was killed" in errors(stack, late, "STEP_FAILURE")["goes_on"]
    told = [event.get("message") or "" for event in stack.events(late)]
    assert any('executed step "goes_on": killed at its step\'s time limit' in text for text in told)


def test_a_step_that_keeps_pythons_global_lock_is_killed_and_tried_again(stack: Stack, late: str) -> None:
    # Given a step in one endless call of C code, with a policy of one retry
    # When the run has ended
    # Then its first attempt was killed at the limit, and the second one succeeded
    retried = errors(stack, late, "STEP_UP_FOR_RETRY")
    assert set(retried) == {"keeps_the_lock"}
    assert "longer than its limit of 3 s" in retried["keeps_the_lock"]
    assert runs.count_events(stack, late, "STEP_SUCCESS")["keeps_the_lock"] == 1


def test_a_step_in_time_is_left_alone_and_a_wrong_limit_is_told(stack: Stack, late: str) -> None:
    # Given a step that takes less than its limit, and one whose limit is no number
    # When the run has ended
    # Then both succeeded, and the run's log warns of the second one
    done = runs.count_events(stack, late, "STEP_SUCCESS")
    assert done["in_time"] == done["mistyped"] == 1
    told = [event.get("message") or "" for event in stack.events(late)]
    assert any(f"The tag {TIMEOUT} of step \"mistyped\" is 'soon'" in text for text in told)


def test_celerys_time_limit_is_the_steps(stack: Stack, begun: dict[str, str]) -> None:
    # Given a job with task_time_limit, and a step that takes longer
    # When its run has ended
    assert stack.wait_for_run(begun["of_celery"])["status"] == "FAILURE"

    # Then the step failed once and says the limit
    (text,) = errors(stack, begun["of_celery"], "STEP_FAILURE").values()
    assert "limit of 1 s (task_time_limit)" in text


def test_a_worker_with_a_time_limit_lets_works_of_the_stack_go_on(stack: Stack, jobs: AdHoc) -> None:
    """Celery's own way would kill the process and acknowledge the message: of runs too, which are tasks as well."""
    # Given a worker with a limit for all tasks, and a step without one
    with jobs.queues(OWN), jobs.worker(OWN, options=["--time-limit", "2"]):
        # When the step takes longer
        (run_id,) = jobs.execute(Spec("own_long", naps(long=LONG_SECS)))

    # Then it is executed once, to its end
    assert stack.run(run_id)["status"] == "SUCCESS"
    assert runs.count_events(stack, run_id, "STEP_START") == {"long": 1}


def test_a_launched_eager_run_is_executed_by_its_runner(stack: Stack, begun: dict[str, str]) -> None:
    # Given a run with task_always_eager, launched as in Dagit
    # When it has ended
    assert stack.wait_for_run(begun["eager"])["status"] == "SUCCESS"

    # Then one runner has executed all of its steps, each once
    events = [each for each in stack.events(begun["eager"]) if each.get("eventType") == "STEP_WORKER_STARTED"]
    assert len(events) == 50
    assert all("runner@" in event["message"] for event in events), events[0]
    (_,) = {event["message"].partition(" on ")[2] for event in events}


def test_a_terminated_eager_run_ends_the_step_that_its_runner_executes(stack: Stack) -> None:
    # Given an eager run whose runner executes a step
    run_id = runs.launch(stack, "queues", config=EAGER)
    wait_until(lambda: runs.count_events(stack, run_id, "STEP_START"), 60, "a step has begun")

    # When it is terminated
    runs.terminate(stack, run_id)

    # Then it ends as canceled
    assert stack.wait_for_run(run_id)["status"] == "CANCELED"
