"""Queues and priorities, by what runs show of them: when each step began, and where."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.stack import runs
from tests.stack.stack import FINAL, Stack

#: Holds the only worker until the second run has sent its step. It is the first to go: its priority is 10.
BLOCKER = "light_04_priority_10"
BLOCKER_SECS = 18
HEAVY_SECS = 8
#: The step of the second run, and what its run adds to its priority.
LATECOMER = "light_03_priority_01"
RUN_PRIORITY = 6


@dataclass(frozen=True)
class TwoRuns:
    """`queues` on a single worker, and one step of a second, later run with a priority of its own."""

    first: str
    second: str


@pytest.fixture(scope="module")
def two_runs(stack: Stack) -> Iterator[TwoRuns]:
    stack.compose("scale", "worker=1")
    try:
        runs.wait_for_workers(stack, 1)
        light = [f"light_{place:02}_priority_{priority:02}" for place, priority in enumerate(LIGHT, start=1)]
        seconds = dict.fromkeys(light, 0) | {BLOCKER: BLOCKER_SECS}
        seconds |= {f"heavy_{number}": HEAVY_SECS for number in range(1, 5)}
        config = {"ops": {step: {"config": {"seconds": secs}} for step, secs in seconds.items()}}
        first = stack.launch("queues", config)
        runs.wait_for_event(stack, first, "STEP_START", BLOCKER)
        second = runs.launch(
            stack, "queues", {"dagster-celery/run_priority": str(RUN_PRIORITY)}, solidSelection=[LATECOMER]
        )
        runs.wait_until_submitted(stack, second, 1)
        assert BLOCKER not in runs.count_events(stack, first, "STEP_SUCCESS"), (
            "too late: nothing waits any more"
        )
        for run_id in (first, second):
            assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
        yield TwoRuns(first, second)
    finally:
        stack.compose("scale", "worker=2")
        runs.wait_for_workers(stack, 2)


#: The priorities of the light steps, as their names say.
LIGHT = (3, 7, 1, 10, 5, 8, 2, 9, 4, 6, 10, 1)


def priority(step: str) -> int:
    return int(step[-2:])


def test_waiting_steps_start_by_falling_priority(stack: Stack, two_runs: TwoRuns) -> None:
    # Given twelve steps of one run that waited for one worker process
    # When they are listed by their starts
    order = [priority(step) for step in runs.spans(stack, two_runs.first, "light_")]

    # Then none began before one of a higher priority
    assert order == sorted(LIGHT, reverse=True)


def test_a_runs_priority_is_added_to_that_of_its_steps(stack: Stack, two_runs: TwoRuns) -> None:
    # Given a step of priority 1 in a later run of priority 6, sent while the first run's steps waited
    first = runs.spans(stack, two_runs.first, "light_")
    ((late, _),) = runs.spans(stack, two_runs.second).values()

    # When its start is put among those of the first run's steps
    before = [priority(step) for step, (start, _) in first.items() if start < late]
    after = [priority(step) for step, (start, _) in first.items() if start > late]

    # Then it went as one of priority 7: after those of 7 and more, before the lower ones
    assert min(before) == priority(LATECOMER) + RUN_PRIORITY
    assert max(after) == 6


def test_heavy_steps_run_on_worker_heavy_and_light_ones_never_do(stack: Stack, two_runs: TwoRuns) -> None:
    # Given a finished run of queues
    # When its steps name who executed them
    executed = runs.workers(stack, two_runs.first)

    # Then each queue has its own worker
    heavy = stack.inspect(stack.container("worker-heavy"))["Config"]["Hostname"]
    light = stack.inspect(stack.container("worker"))["Config"]["Hostname"]
    for step, names in executed.items():
        assert names == ({f"heavy@{heavy}"} if step.startswith("heavy_") else {f"dagster@{light}"}), step
    assert len(executed) == 12 + 4 + 1


def test_heavy_steps_run_one_at_a_time(stack: Stack, two_runs: TwoRuns) -> None:
    # Given four heavy steps that were ready at once
    # When their times are laid side by side
    spans = list(runs.spans(stack, two_runs.first, "heavy_").values())

    # Then each began after the one before it had ended
    assert len(spans) == 4
    for (_, end), (start, _) in pairwise(spans):
        assert start >= end


def test_long_heavy_steps_hold_up_no_light_ones(stack: Stack, two_runs: TwoRuns) -> None:
    # Given heavy steps that were still running or waiting when the light worker was free again
    last_heavy_end = max(end for _, end in runs.spans(stack, two_runs.first, "heavy_").values())

    # When the light steps' times are compared with theirs
    light_ends = [end for _, end in runs.spans(stack, two_runs.first, "light_").values()]

    # Then all the light ones ended while heavy work was going on
    assert max(light_ends) < last_heavy_end


def test_the_last_step_shows_the_order_in_dagit(stack: Stack, two_runs: TwoRuns) -> None:
    # Given a finished run of queues
    # When its last step's table is read
    lines = stack.metadata(two_runs.first, "start_order")["order"].splitlines()[2:]

    # Then it lists all steps as they began
    listed = [line.split("|")[5].strip() for line in lines]
    assert [step for step in listed if step.startswith("light_")] == list(
        runs.spans(stack, two_runs.first, "light_")
    )
    assert len(listed) == 16


def test_queues_are_durable_and_take_ten_priorities(stack: Stack) -> None:
    # Given a stack that has run steps
    # When RabbitMQ's management API lists the queues of steps
    queues = {entry["name"]: entry for entry in stack.broker(f"queues/{stack.settings['RABBITMQ_VHOST']}")}

    # Then both are durable priority queues, and nothing is left in them
    for name in ("dagster", "heavy"):
        assert queues[name]["durable"], name
        assert queues[name]["arguments"].get("x-max-priority") == 10, name


@pytest.fixture
def one_worker(stack: Stack) -> Iterator[str]:
    """The only worker, on both queues with one process; gives its container."""
    name = f"{stack.project}-on-both"
    command = (
        "celery",
        "-A",
        "dagster_stack.app",
        "worker",
        "-n",
        "both@%h",
        "-Q",
        "dagster,heavy",
        "-c",
        "1",
        "-l",
        "INFO",
    )
    # The other tests here may still have one alone.
    usual = len(stack.containers("worker"))
    stack.compose("stop", "worker", "worker-heavy")
    try:
        stack.compose("run", "-d", "--no-deps", "--name", name, "cli", *command)
        yield name
    finally:
        stack.docker("rm", "-f", name, check=False)
        stack.compose("start", "worker", "worker-heavy")
        runs.wait_for_workers(stack, usual)


def test_a_worker_on_two_queues_holds_no_step_of_one_behind_a_step_of_the_other(
    stack: Stack, one_worker: str
) -> None:
    # Given steps on both queues, and a broker that counts for each of them alone
    light = [f"light_{place:02}_priority_{each:02}" for place, each in enumerate(LIGHT, start=1)]
    seconds = dict.fromkeys(light, 0.5) | {f"heavy_{number}": 0.5 for number in range(1, 5)}
    config = {"ops": {step: {"config": {"seconds": secs}} for step, secs in seconds.items()}}
    run_id = stack.launch("queues", config)

    # When the one worker executes them
    held = []
    while stack.run(run_id)["status"] not in FINAL:
        held.append(sum(unacknowledged(stack).values()))
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)

    # Then it held one message at a time, but for an instant, and neither queue waited for the end of the other
    assert held.count(1) > 2 * sum(number > 1 for number in held), held
    order = [step.startswith("heavy") for step in runs.spans(stack, run_id, "") if step != "start_order"]
    assert True in order[:6], order
    assert False in order[:6], order


def unacknowledged(stack: Stack) -> dict[str, int]:
    """What workers hold of each queue now: the management API's figures are 2 s old."""
    lines = stack.exec("rabbitmq", "rabbitmqctl", "-q", "-p", stack.settings["RABBITMQ_VHOST"], "list_queues",
                       "name", "messages_unacknowledged").stdout.splitlines()  # fmt: skip
    found = dict(line.split("\t") for line in lines[1:])
    return {name: int(found.get(name, 0)) for name in ("dagster", "heavy")}
