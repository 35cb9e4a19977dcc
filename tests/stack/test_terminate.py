"""A run that is stopped from Dagit."""

from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: The stock executor leaves a step that runs to its end, and waits for it.
NAP_SECS = 5


def napping(stack: Stack, seconds: float) -> str:
    """A run of `queues` with a heavy step at work and three that wait for it."""
    naps = {f"heavy_{number}": {"config": {"seconds": seconds}} for number in range(1, 5)}
    run_id = stack.launch("queues", {"ops": naps})
    runs.wait_for_event(stack, run_id, "STEP_START", "heavy_1")
    return run_id


def test_a_terminated_run_ends_canceled_and_starts_no_waiting_step(stack: Stack) -> None:
    # Given a run with a step at work and others that wait for its worker
    run_id = napping(stack, NAP_SECS)

    # When it is terminated in Dagit
    runs.terminate(stack, run_id)

    # Then it ends canceled, and the waiting steps never begin
    assert stack.wait_for_run(run_id)["status"] == "CANCELED"
    assert (
        set(runs.count_events(stack, run_id, "STEP_START")) & {"heavy_3", "heavy_4", "start_order"} == set()
    )


def test_a_forced_end_marks_the_run_canceled_at_once(stack: Stack) -> None:
    # Given a run with a step at work
    run_id = napping(stack, NAP_SECS)

    # When its end is forced in Dagit
    runs.terminate(stack, run_id, "MARK_AS_CANCELED_IMMEDIATELY")

    # Then it is canceled without waiting for the step, and stays so
    assert stack.run(run_id)["status"] == "CANCELED"
    wait_until(
        lambda: stack.broker(f"queues/{stack.settings['RABBITMQ_VHOST']}/heavy")["messages"],
        120, "nothing of it left on the queue heavy", until=lambda left: left == 0, pause=2,
    )  # fmt: skip
    assert stack.run(run_id)["status"] == "CANCELED"


def test_a_queued_run_is_terminated_before_it_starts(stack: Stack) -> None:
    # Given a run that is put into the queue
    run_id = stack.launch("parallel_pipeline")

    # When it is terminated right then
    runs.terminate(stack, run_id)

    # Then it ends canceled, with no step done
    assert stack.wait_for_run(run_id)["status"] == "CANCELED"
    assert not runs.count_events(stack, run_id, "STEP_SUCCESS")
