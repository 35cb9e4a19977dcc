"""`make autoscale` on a real stack: 1 → 6 → 1 workers, killed midway, and no step is executed twice or interrupted."""

import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.stack import runs, short_and_long, work
from tests.stack.autoscaling import (
    DOWN_SECS,
    UP_SECS,
    Controller,
    Haste,
    controlled,
    feeds,
    status,
    wait_for_number,
    workers,
)
from tests.stack.stack import Stack
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def controller(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    log = tmp_path_factory.mktemp("autoscale") / "log"
    with controlled(stack, log) as found:
        yield found
    print(log.read_text())


def test_workers_follow_the_work_and_no_step_is_executed_twice(stack: Stack, controller: Controller) -> None:
    # Given one worker, and many steps beside a long one
    (first,) = workers(stack)
    controller.start()
    wait_until(lambda: status(stack), 60, "the controller is at work", until=bool)
    haste = Haste()
    run_id = work.begin_on_volume(stack, short_and_long.__file__, "short_and_long")

    # When there is more work than it can do, then there are six, and the figures say why
    wait_for_number(stack, 6, UP_SECS)
    found = wait_until(
        lambda: status(stack)["worker"], 30, "figures of six", until=lambda it: it["running"] == 6
    )
    assert (found["least"], found["most"]) == (1, 6)
    assert (found["wish"], found["reason"]) == (6, "maximum")

    # And when the controller is killed, then all go on
    controller.end(signal.SIGKILL)
    six = workers(stack)
    wait_until(
        lambda: len(runs.count_events(stack, run_id, "STEP_SUCCESS")), 300, "all short steps done",
        until=lambda done: done == short_and_long.NUMBER,
    )  # fmt: skip
    assert workers(stack) == six
    assert not feeds(stack)

    # And once it is there again, workers go one by one, but the one with the long step; killed meanwhile too
    controller.start()
    wait_for_number(stack, 4, DOWN_SECS)
    controller.end(signal.SIGKILL)
    controller.start()
    wait_for_number(stack, 1, DOWN_SECS)
    assert "long" not in runs.count_events(stack, run_id, "STEP_SUCCESS"), "the long step was to outlast that"
    (left,) = workers(stack)
    stack.wait_for_run(run_id)

    # Then the run is a success, and each step was executed once
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    executed = runs.executions(stack, run_id)
    assert Counter(each.step for each in executed) == Counter(
        {"long": 1, **{f"short_{number}": 1 for number in range(short_and_long.NUMBER)}}
    )
    assert {each.worker for each in executed if each.step == "long"} == {left}
    # And the first new worker took a step soon
    haste.require(stack, run_id, {first})


def test_a_message_brings_the_first_worker_of_a_queue_that_has_none(
    stack: Stack, controller: Controller
) -> None:
    assert workers(stack, "worker-heavy") == {}
    if not controller.process:
        controller.start()

    run_id = runs.launch(stack, "queues", solidSelection=["heavy_1"])
    stack.wait_for_run(run_id)

    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    wait_for_number(stack, 0, DOWN_SECS, "worker-heavy")


def test_other_commands_keep_what_there_is_and_the_numbers_follow_the_work_again(
    stack: Stack, controller: Controller
) -> None:
    if not controller.process:
        controller.start()
    before = workers(stack)

    # When somebody scales beside it, and looks after the stack
    stack.make("scale", "N=3")
    assert len(workers(stack)) == 3
    assert before.items() <= workers(stack).items()

    # Then the number follows the work again, and for `make up` there is nothing to do, whatever hole is in the containers' numbers
    wait_for_number(stack, 1, DOWN_SECS)
    one = workers(stack)
    assert "nothing to do" in stack.make("up").stdout
    assert workers(stack) == one

    # And when the stack is taken down, nothing is started again
    stack.make("down")
    deadline = time.monotonic() + 10
    wait_until(
        stack.containers,
        20,
        "10 s without a container",
        until=lambda found: found or time.monotonic() > deadline,
    )
    assert stack.containers() == []
    controller.end()
