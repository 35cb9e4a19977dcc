"""Runs whose driving process is gone: failed with a reason, and started again from where they were."""

from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

PARENT = "dagster/parent_run_id"


def test_a_run_lost_with_the_daemon_fails_with_a_reason_and_its_retry_succeeds(stack: Stack) -> None:
    # Given a run in progress, of which some steps have ended and others run
    naps = {f"heavy_{number}": {"config": {"seconds": 4}} for number in range(1, 5)}
    run_id = stack.launch("queues", {"ops": naps})
    runs.wait_for_event(stack, run_id, "STEP_SUCCESS", "heavy_1")

    # When the daemon, in which its process lives, is restarted
    stack.compose("restart", "daemon")

    # Then the run ends as a failure that says why
    lost = stack.wait_for_run(run_id)
    assert lost["status"] == "FAILURE"
    reasons = " ".join(stack.failure_texts(run_id))
    assert "ended with the daemon" in reasons, reasons

    # And a retry does what was left, without anybody's help
    retry = wait_until(lambda: runs.with_tag(stack, PARENT, run_id), 120, "a retry of the lost run")[0][
        "runId"
    ]
    assert stack.wait_for_run(retry)["status"] == "SUCCESS", stack.failure_texts(retry)
    done_before = set(runs.count_events(stack, run_id, "STEP_SUCCESS"))
    done_again = set(runs.count_events(stack, retry, "STEP_SUCCESS"))
    assert "heavy_1" in done_before - done_again
    assert "start_order" in done_again
    stack.wait_until_healthy("daemon")
