"""Queues of `celery_executor`: who takes a step, and in which order."""

from itertools import pairwise

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.executor_jobs.queues import OTHER, OWN
from tests.stack.stack import Stack
from tests.waiting import wait_until

RUN_PRIORITY = "dagster-celery/run_priority"
#: Seconds after which the log tells of a queue without worker: 5, and as many again for a busy machine.
TOLD_SECS = 10
LONG_SECS = 18
#: The queues are looked at every 2 s: a step must be with its worker for longer to be seen there.
NAP_SECS = 4


def test_the_log_tells_how_to_start_the_worker_that_a_queue_lacks(stack: Stack) -> None:
    # Given a run with a step for a queue whose worker is stopped
    stack.compose("stop", "worker-heavy")
    started = ""
    try:
        run_id = runs.launch(
            stack, "queues", solidSelection=["heavy_1"],
            config={"ops": {"heavy_1": {"config": {"seconds": NAP_SECS}}}},
        )  # fmt: skip

        # When the step waits
        told_at, message = runs.wait_until_told(stack, run_id, "no worker consumes it")

        # Then the run's log soon names the queue and a command
        (sent,) = runs.sent(stack, run_id)
        assert told_at - sent.at < TOLD_SECS
        assert '"heavy"' in message
        command = message.partition("Start one: ")[2].split()
        assert command[:2] == ["docker", "compose"]
        assert "celery -A dagster_stack.app worker" in message
        assert command[command.index("-Q") + 1] == "heavy"

        # And that command starts a worker, with which the run goes on
        started = stack.compose(*command[2:]).stdout.strip()
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
        (execution,) = runs.executions(stack, run_id)
        assert execution.worker == f"heavy@{stack.inspect(started)['Config']['Hostname']}"
        # And the log says so, once each
        told = [text for _, text in runs.told_by_executor(stack, run_id)]
        assert sum("no worker consumes it" in text for text in told) == 1
        assert sum('A worker consumes queue "heavy" now.' in text for text in told) == 1
    finally:
        if started:
            stack.docker("rm", "-f", started)
        stack.start("worker-heavy")
        stack.wait_until_healthy("worker-heavy")


def test_step_and_run_priority_together_decide_the_order(stack: Stack, jobs: AdHoc) -> None:
    # Given four runs with priorities of their own, far ones too, whose steps have priorities, and wait
    run_priorities = (0, 3, 100, -100)
    with jobs.queues(OWN):
        ids = jobs.begin(
            *(Spec("priorities", tags={RUN_PRIORITY: str(priority)}) for priority in run_priorities)
        )
        wait_until(
            lambda: [len(runs.sent(stack, run_id)) for run_id in ids], 60, "all steps are sent",
            until=lambda sent: sent == [5, 5, 5, 5],
        )  # fmt: skip
        wait_until(
            lambda: stack.broker(f"queues/{stack.vhost}/{OWN}").get("messages_ready"),
            30, "all steps wait", until=lambda ready: ready == 20,
        )  # fmt: skip

        # When one worker takes them one by one
        with jobs.worker(OWN):
            for run_id in ids:
                assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)

    # Then none went before one with a higher sum, kept within 0 to 10
    went = sorted(
        (execution.at, max(0, min(10, int(execution.step[-2:]) + priority)))
        for run_id, priority in zip(ids, run_priorities, strict=True)
        for execution in runs.executions(stack, run_id)
    )
    assert len(went) == 20
    for (_, priority), (_, following) in pairwise(went):
        assert priority >= following, went
    # And the log of each names it
    for run_id, priority in zip(ids, run_priorities, strict=True):
        for sent in runs.sent(stack, run_id):
            assert sent.priority == max(0, min(10, int(sent.step[-2:]) + priority)), sent


def test_no_short_step_waits_behind_a_long_one_while_another_worker_is_idle(
    stack: Stack, jobs: AdHoc
) -> None:
    # Given two workers that consume the same two queues, of which one has a long step
    with jobs.queues(OWN, OTHER), jobs.workers(OWN, OTHER, names=["one", "two"]):
        (long_run,) = jobs.begin(Spec("own_long", {"ops": {"long": {"config": {"seconds": LONG_SECS}}}}))
        runs.wait_for_event(stack, long_run, "STEP_START", "long")

        # When short steps come to both queues
        (short_run,) = jobs.begin(Spec("shorts"))
        for run_id in (short_run, long_run):
            assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)

    # Then the other worker executed all of them, before the long one ended
    (long_execution,) = runs.executions(stack, long_run)
    ((_, long_end),) = runs.spans(stack, long_run).values()
    waited = {step: start for step, (start, _) in runs.spans(stack, short_run).items() if start > long_end}
    assert not waited, f"these waited for the end of the long step: {waited}"
    assert long_execution.worker not in {entry.worker for entry in runs.executions(stack, short_run)}


def test_the_stock_executor_works_beside_in_the_same_queues(stack: Stack, jobs: AdHoc) -> None:
    # Given a job with steps for two queues, once with this executor and once with dagster-celery's
    steps = [f"mixed_{queue}_{number}" for queue in ("dagster", "heavy") for number in range(4)]
    config = {"ops": {step: {"config": {"seconds": 0.5}} for step in steps}}

    # When both run at the same time
    ids = jobs.begin(Spec("mixed_ours", config), Spec("mixed_stock", config))
    for run_id in ids:
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)

    # Then each step of both was executed once
    for run_id in ids:
        assert runs.count_events(stack, run_id, "STEP_START") == dict.fromkeys(steps, 1)
        assert runs.count_events(stack, run_id, "STEP_SUCCESS") == dict.fromkeys(steps, 1)
    # And they did overlap
    ours, stock = (list(runs.spans(stack, run_id).values()) for run_id in ids)
    assert min(ours)[0] < max(end for _, end in stock)
    assert min(stock)[0] < max(end for _, end in ours)
