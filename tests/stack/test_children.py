"""Steps that start processes: they may, all of them end with the step, and other executors may start theirs."""

import json
import uuid

import pytest

from dagster_stack.failure_reasons import Reason
from dagster_stack.timing import IDLE_SECS
from tests.stack import children_jobs, runs
from tests.stack.ad_hoc import AdHoc
from tests.stack.stack import Stack
from tests.waiting import wait_until

MODULE = "children_jobs"
JOBS = [
    "starting", "losing", "too_much", "by_processes", "by_forked_processes", "stubborn_by_processes", "by_a_broken_executor",
]  # fmt: skip


@pytest.fixture(scope="module")
def launched(stack: Stack) -> dict[str, str]:
    """A run of each job, all at once, on the runners."""
    jobs = AdHoc(stack, MODULE)
    jobs.install()
    marks = {name: str(uuid.uuid4()) for name in JOBS}
    stack.exec("daemon", "python", jobs.target, json.dumps(marks))
    return {name: marked(stack, mark) for name, mark in marks.items()}


def marked(stack: Stack, mark: str) -> str:
    found = wait_until(lambda: runs.with_tag(stack, children_jobs.TAG, mark), 30, "a run")
    return str(found[0]["runId"])


def texts(stack: Stack, run_id: str) -> list[str]:
    return [str(event["message"]) for event in stack.events(run_id)]


def left(stack: Stack) -> list[str]:
    """What of the steps' processes is still there, in any container that executes steps."""
    # Patterns that do not match themselves.
    look = "grep -l 'left-by-a-[t]est' /proc/[0-9]*/cmdline 2>/dev/null | xargs -r grep -l 'sleep([6]00)' || true"
    return [
        found
        for service in ("worker", "worker-heavy", "runner")
        for entry in stack.containers(service)
        for found in stack.docker("exec", entry.name, "sh", "-c", look).stdout.split()
    ]


def test_a_step_may_start_processes_threads_and_share_memory(stack: Stack, launched: dict[str, str]) -> None:
    # Given steps that use multiprocessing in every way, fork, and leave all of it
    run_id = launched["starting"]
    # When they have ended
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    # Then each was executed once
    assert set(runs.count_events(stack, run_id, "STEP_START").values()) == {1}
    # And what the forked child, and its parent after it, logged is there once
    said = texts(stack, run_id)
    assert [line for line in said if line.startswith("child's line")] == [
        f"child's line {n}" for n in range(300)
    ]
    assert said.count("said by the parent") == 1
    # And the run says what it ended, which is gone: it may say so after its end
    wait_until(
        lambda: [
            line for line in texts(stack, run_id) if "left running were ended" in line and "left-by-a-test" in line
        ],
        30, "what the run has ended",
    )  # fmt: skip


def test_what_a_lost_or_failed_execution_started_is_gone_before_the_next(
    stack: Stack, launched: dict[str, str]
) -> None:
    run_id = launched["losing"]

    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)

    assert runs.count_events(stack, run_id, "STEP_START")["killed"] == 2


def test_a_run_that_a_killed_step_executed_has_failed_and_its_successor_succeeds(
    stack: Stack, launched: dict[str, str]
) -> None:
    run_id = launched["losing"]
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert runs.count_events(stack, run_id, "STEP_START")["executing_a_run"] == 2

    # Once the daemon has looked
    def ends() -> list[str]:
        return [each["status"] for each in runs.with_tag(stack, children_jobs.OUTER, run_id)]

    wait_until(ends, IDLE_SECS, "both runs have ended", until=lambda found: found == ["SUCCESS", "FAILURE"])

    # Then the lost one says of what, by a reason that is counted
    lost = runs.with_tag(stack, children_jobs.OUTER, run_id)[1]["runId"]
    assert runs.failure_reasons(stack, lost) == {Reason.LOST_WITH_STEP}
    assert any(f"of run {run_id}" in text and "SIGKILL" in text for text in texts(stack, lost))


def test_a_step_that_dies_of_full_shared_memory_names_the_setting(
    stack: Stack, launched: dict[str, str]
) -> None:
    run_id = launched["too_much"]

    assert stack.wait_for_run(run_id)["status"] == "FAILURE"

    assert runs.failure_reasons(stack, run_id) == {Reason.DELIVERY_LIMIT}
    assert any(
        "SIGBUS" in text and "/dev/shm" in text and "WORKER_SHM" in text
        for text in stack.failure_texts(run_id)
    )


@pytest.mark.parametrize("job", ["by_processes", "by_forked_processes"])
def test_a_job_of_dagsters_multiprocess_executor_runs_within_the_runner(
    stack: Stack, launched: dict[str, str], job: str
) -> None:
    run_id = launched[job]

    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", texts(stack, run_id)

    output = runs.output(stack, run_id, "printing")
    assert output
    assert "printed in a process of the runner" in output.stdout


def test_an_error_of_an_executor_is_in_the_runs_log(stack: Stack, launched: dict[str, str]) -> None:
    run_id = launched["by_a_broken_executor"]

    assert stack.wait_for_run(run_id)["status"] == "FAILURE"

    assert any("an executor that can't" in text for text in texts(stack, run_id))


def test_a_terminated_run_of_stubborn_processes_ends_with_them(
    stack: Stack, launched: dict[str, str]
) -> None:
    run_id = launched["stubborn_by_processes"]
    runs.wait_for_event(stack, run_id, "STEP_START", "stubborn_op")

    runs.terminate(stack, run_id)

    assert stack.wait_for_run(run_id, timeout=40)["status"] == "CANCELED"
    # And nothing that any of these runs has started is left anywhere
    wait_until(lambda: left(stack), 20, "all processes of steps gone", until=lambda found: not found)
