"""A run on `celery_executor` that is stopped from Dagit."""

from tests.stack import runs, work
from tests.stack.stack import Stack
from tests.waiting import wait_until

HEAVY = [f"heavy_{number}" for number in range(1, 5)]
#: Far beyond what the test waits: a step that ends sooner was interrupted.
LONG_SECS = 300
STOP_SECS = 30


def test_a_terminated_run_interrupts_what_runs_and_calls_back_what_waits(stack: Stack) -> None:
    # Given a run with a long step at work, and three that wait for the same worker
    config = {"ops": {step: {"config": {"seconds": LONG_SECS}} for step in HEAVY}}
    run_id = runs.launch(stack, "queues", solidSelection=HEAVY, config=config)
    runs.wait_for_event(stack, run_id, "STEP_START")

    # When it is terminated in Dagit
    runs.terminate(stack, run_id)

    # Then it soon ends canceled, since its step was interrupted
    assert stack.wait_for_run(run_id, STOP_SECS)["status"] == "CANCELED"
    (at_work,) = runs.count_events(stack, run_id, "STEP_START")
    wait_until(
        lambda: runs.statuses(stack, run_id).get(at_work), STOP_SECS, f"the end of {at_work}",
        until=lambda status: status == "FAILURE",
    )  # fmt: skip

    # And its waiting steps leave the queue without being executed: the worker is free for another run
    after = work.succeed(stack)
    assert set(HEAVY) <= set(runs.count_events(stack, after, "STEP_SUCCESS"))
    assert {entry.step for entry in runs.executions(stack, run_id)} == {at_work}
    assert not runs.count_events(stack, run_id, "STEP_SUCCESS")
    assert stack.run(run_id)["status"] == "CANCELED"
