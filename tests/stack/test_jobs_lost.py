"""A run does not live in the daemon: whatever happens to that, the run goes on."""

from tests.stack import runs
from tests.stack.stack import Stack


def test_a_run_goes_on_while_the_daemon_restarts(stack: Stack) -> None:
    # Given a run in progress, of which some steps have ended and others run
    naps = {f"heavy_{number}": {"config": {"seconds": 4}} for number in range(1, 5)}
    run_id = stack.launch("queues", {"ops": naps})
    runs.wait_for_event(stack, run_id, "STEP_SUCCESS", "heavy_1")

    # When the daemon, which started it, is restarted
    stack.compose("restart", "daemon")

    # Then the run ends right, and no step of it was executed twice
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    starts = runs.count_events(stack, run_id, "STEP_START")
    assert starts == runs.count_events(stack, run_id, "STEP_SUCCESS")
    assert set(starts.values()) == {1}
    stack.wait_until_healthy("daemon")
