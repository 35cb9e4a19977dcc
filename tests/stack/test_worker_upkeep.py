"""What a worker does beyond its steps: it puts aside what it can't use, and notices when it gets nothing."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from tests.stack import faults, runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Each has workers of its own.
QUEUES = ("dagster", "heavy")
#: Seconds in which a deaf worker must hear again.
HEARING_SECS = 60
#: Seconds between the ends of two steps that do nothing, and wait for the same process.
NEXT_SECS = 3
#: Seconds in which a worker has another process in the place of one that died.
REPLACED_SECS = 20
#: Ends the broker's side of every subscription to a queue, without a word to the worker; fails when one is left.
DEAFEN = """
{ok, Queue} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"VHOST">>, queue, <<"QUEUE">>)),
[ok = gen_server2:call(
    amqqueue:get_pid(Queue),
    {stop_consumer, #{pid => element(1, Each), consumer_tag => element(2, Each), user => <<"t">>, reason => cancel}}
) || Each <- rabbit_amqqueue:consumers(Queue)],
[] = rabbit_amqqueue:consumers(Queue).
"""


def publish(stack: Stack, queue: str, body: bytes, properties: dict[str, Any]) -> None:
    """A message as any program on this broker could send it."""
    answer = stack.broker_do(
        "POST",
        f"exchanges/{stack.vhost}/amq.default/publish",
        {
            "properties": properties,
            "routing_key": queue,
            "payload": base64.b64encode(body).decode(),
            "payload_encoding": "base64",
        },
    )
    assert answer["routed"], f"there is no queue {queue}"


def letters(stack: Stack) -> list[dict[str, Any]]:
    printed = stack.compose(
        "run", "--rm", "--no-deps", "-T", "cli", "python", "-m", "dagster_stack", "dead-letters", "--json"
    ).stdout
    return list(json.loads(printed))


def restarts(stack: Stack) -> dict[str, int]:
    """How often each container was restarted."""
    return {entry.name: stack.inspect(entry.name)["RestartCount"] for entry in stack.containers("worker")}


@pytest.fixture
def no_letters(stack: Stack) -> Iterator[None]:
    stack.broker_do(
        "PUT", f"queues/{stack.vhost}/dead-letters", {"durable": True, "arguments": {"x-max-length": 10_000}}
    )
    stack.broker_do("DELETE", f"queues/{stack.vhost}/dead-letters/contents")
    yield
    stack.broker_do("DELETE", f"queues/{stack.vhost}/dead-letters/contents")


@pytest.mark.usefixtures("no_letters")
def test_messages_of_no_use_are_put_aside_and_no_worker_ends(stack: Stack) -> None:
    # Given workers, and messages that Celery discards or dies of
    before = restarts(stack)
    ours = {"task": "dagster_stack.execute_step", "id": str(uuid4())}
    json_text = {"content_type": "application/json", "content_encoding": "utf-8"}
    arguments = json.dumps([[], {"message": {}}, {}]).encode()
    for body, properties in (
        (b"hello", {"content_type": "text/plain"}),
        (b"\xff\xfe", json_text),
        (b"5", {**json_text, "headers": ours}),
        (arguments, {**json_text, "headers": {"task": "nobody.knows", "id": "1"}}),
        (arguments, {**json_text, "headers": {"task": ours["task"]}}),
        (arguments, {**json_text, "headers": {**ours, "timelimit": ["a", "b"]}}),
        # Of a version that this code does not read: the task itself finds that.
        (arguments, {**json_text, "headers": ours}),
    ):
        publish(stack, "dagster", body, properties)

    # When they were delivered, then each is a letter with its reason
    found = wait_until(lambda: letters(stack), 60, "all are put aside", lambda seen: len(seen) == 7, pause=2)
    assert all(letter["reason"] and letter["queue"] == "dagster" for letter in found)
    shown = stack.make("dead-letters").stdout
    assert "nobody.knows" in shown
    assert "timelimit" in shown
    # And the workers are the same ones, and work
    assert restarts(stack) == before
    stack.succeed("parallel_pipeline")
    # And looking at letters leaves them where they are
    assert len(letters(stack)) == 7


def test_workers_whose_subscriptions_the_broker_forgot_hear_again(stack: Stack) -> None:
    def consumers() -> Counter[str]:
        # Not the queues' own counts, nor the management API's: they are wrong, or late, after such an end.
        listed = stack.exec("rabbitmq", "rabbitmqctl", "-q", "list_consumers", "-p", stack.vhost).stdout
        found = (line.split()[0] for line in listed.splitlines() if line)
        return Counter(queue for queue in found if queue in QUEUES)

    before = wait_until(consumers, 30, "somebody consumes each", lambda seen: set(seen) == set(QUEUES))

    for queue in QUEUES:
        code = " ".join(DEAFEN.replace("VHOST", stack.vhost).replace("QUEUE", queue).split())
        stack.exec("rabbitmq", "rabbitmqctl", "eval", code)

    wait_until(consumers, HEARING_SECS, f"{before} workers consume", lambda seen: seen == before)
    stack.succeed("queues")


def test_a_lost_process_is_replaced_while_the_broker_has_an_alarm(stack: Stack) -> None:
    worker = stack.container("worker")
    lost = faults.pool_process(stack, worker)
    with faults.disk_alarm(stack):
        # Given a broker that reads no events of the worker any more
        wait_until(
            lambda: [each.get("state") for each in stack.broker("connections")], 30, "a blocked connection",
            until=lambda states: "blocked" in states,
        )  # fmt: skip
        # When its pool process dies, then there is another one, long before the alarm ends
        faults.crash(lost)
        wait_until(
            lambda: [pid for pid in faults.children(stack, worker, faults.main_process(stack, worker)) if pid != lost],
            REPLACED_SECS, "another process",
        )  # fmt: skip


def test_steps_that_wait_follow_each_other_at_once_while_the_broker_has_an_alarm(stack: Stack) -> None:
    # Given steps that wait for one process, which is busy until the broker takes nothing any more
    heavy = [f"heavy_{number}" for number in range(1, 5)]
    seconds = dict.fromkeys(heavy, 0) | {heavy[0]: 12}
    config = {"ops": {step: {"config": {"seconds": secs}} for step, secs in seconds.items()}}
    run_id = runs.launch(stack, "queues", solidSelection=heavy, config=config)
    runs.wait_for_event(stack, run_id, "STEP_START", heavy[0])
    with faults.disk_alarm(stack):
        # When they are executed one after the other
        wait_until(lambda: runs.count_events(stack, run_id, "STEP_SUCCESS"), 60, "all have ended",
                   until=lambda ended: len(ended) == len(heavy))  # fmt: skip

    # Then none was longer with its process since nobody took the news of its end
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    ends = sorted(end for _, end in runs.spans(stack, run_id, "heavy_").values())
    assert max(later - earlier for earlier, later in pairwise(ends)) < NEXT_SECS, ends
