"""Messages of `celery_executor`: what they are named, and that they may be lost or come twice."""

from collections import Counter
from typing import Any

from dagster_stack.messaging.messages import step_task_id
from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec, naps
from tests.stack.stack import Stack
from tests.waiting import wait_until

WAKEUPS = "dagster.wakeup"
#: Runs of each kind after which the broker must be as before.
MANY_RUNS = [
    Spec("retrying"),
    Spec("dynamic", {"ops": {"numbers": {"config": {"count": 3}}}}),
    Spec("failing"),
]
MANY_RUNS += [Spec("waiting_line")] * 2 + [Spec("line")] * 15


def held_by_broker(stack: Stack) -> set[tuple[str, ...]]:
    """Every queue, exchange and binding of the broker by name, and each queue in which messages are."""
    queues = stack.broker(f"queues/{stack.vhost}")
    return {
        *(("queue", queue["name"]) for queue in queues),
        *(("messages in", queue["name"]) for queue in queues if queue.get("messages")),
        *(("exchange", exchange["name"]) for exchange in stack.broker(f"exchanges/{stack.vhost}")),
        *(
            ("binding", binding["source"], binding["destination"], binding["routing_key"])
            for binding in stack.broker(f"bindings/{stack.vhost}")
        ),
    }


def wake_up_bindings(stack: Stack, run_id: str) -> list[str]:
    """The queues that get the wake-ups of a run."""
    return [
        binding["destination"]
        for binding in stack.broker(f"exchanges/{stack.vhost}/{WAKEUPS}/bindings/source")
        if binding["routing_key"] == run_id
    ]


def unbind_all_wake_ups(stack: Stack) -> None:
    """What happens to a broker that forgets: the exchange is there, and nobody gets anything from it."""
    stack.broker_do("DELETE", f"exchanges/{stack.vhost}/{WAKEUPS}")
    stack.broker_do("PUT", f"exchanges/{stack.vhost}/{WAKEUPS}", {"type": "direct", "durable": True})


def waiting_messages(stack: Stack, queue: str) -> dict[str, dict[str, Any]]:
    """The messages that wait in a queue by their Celery id; they stay where they are."""
    taken = stack.broker_do(
        "POST",
        f"queues/{stack.vhost}/{queue}/get",
        {"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64"},
    )
    return {message["properties"]["headers"]["id"]: message for message in taken}


def send_copy(stack: Stack, queue: str, message: dict[str, Any]) -> None:
    """The same message once more."""
    headers = {
        # The management API shows what is null as a text, also in the list of time limits.
        name: value
        for name, value in message["properties"]["headers"].items()
        if "undefined" not in (value if isinstance(value, list) else [value])
    }
    answer = stack.broker_do(
        "POST",
        f"exchanges/{stack.vhost}/amq.default/publish",
        {
            "routing_key": queue, "properties": {**message["properties"], "headers": headers},
            "payload": message["payload"], "payload_encoding": "base64",
        },
    )  # fmt: skip
    assert answer["routed"], answer


def test_many_runs_leave_nothing_in_the_broker(stack: Stack, jobs: AdHoc) -> None:
    # Given what the broker holds once the stack has made a run
    jobs.execute(Spec("waiting_line"))
    before = wait_until(
        lambda: held_by_broker(stack), 30, "no message in any queue",
        until=lambda held: not any(kind == "messages in" for kind, *_ in held),
    )  # fmt: skip

    # When it has made twenty more
    made = jobs.execute(*MANY_RUNS)
    assert len(made) == 20

    # Then there is nothing that was not there before
    wait_until(
        lambda: held_by_broker(stack) - before, 30, "nothing new in the broker", until=lambda left: not left
    )


def test_task_ids_follow_from_run_step_and_attempt(stack: Stack, jobs: AdHoc) -> None:
    # Given a run with steps that are tried several times
    (run_id,) = jobs.execute(Spec("retrying"))

    # When the tasks are read that it sent, and those that workers executed
    sent = {(entry.step, entry.attempt): entry.task for entry in runs.sent(stack, run_id)}
    executed = {(entry.step, entry.attempt): entry.task for entry in runs.executions(stack, run_id)}

    # Then each has the id that anybody can compute
    assert ("third_time_lucky", 3) in sent
    assert sent == {(step, attempt): step_task_id(run_id, step, attempt) for step, attempt in sent}
    assert executed == sent


def test_a_run_whose_wake_ups_are_all_lost_ends_right(stack: Stack, jobs: AdHoc) -> None:
    # Given a run whose first step is at work, and that gets no more wake-ups
    (run_id,) = jobs.begin(Spec("line", naps(first=3), ops=["first", "middle"]))
    runs.wait_for_event(stack, run_id, "STEP_START", "first")
    assert wake_up_bindings(stack, run_id), "nothing to lose"
    unbind_all_wake_ups(stack)
    assert not runs.count_events(stack, run_id, "STEP_SUCCESS"), "too late: the first one has ended"

    # When its steps end
    run = stack.wait_for_run(run_id, 60)

    # Then it finds that out by itself
    assert run["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert runs.count_events(stack, run_id, "STEP_START") == {"first": 1, "middle": 1}


def test_a_message_that_comes_twice_is_executed_once(stack: Stack, jobs: AdHoc) -> None:
    # Given a step that waits while the one worker of its queue is busy
    (run_id,) = jobs.begin(Spec("waiting_line", naps(opener=8, closer=2)))
    runs.wait_for_event(stack, run_id, "STEP_START", "opener")
    task = step_task_id(run_id, "victim", 1)
    waiting = wait_until(
        lambda: waiting_messages(stack, "heavy"), 30, task, until=lambda found: task in found
    )

    # When its message is there a second time, before another step of the run
    send_copy(stack, "heavy", waiting[task])
    assert not runs.count_events(stack, run_id, "STEP_SUCCESS"), "too late: the worker is free"
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)

    # Then the second one was taken, and left alone
    wait_until(lambda: waiting_messages(stack, "heavy"), 30, "an empty queue", until=lambda found: not found)
    logs = stack.docker("logs", stack.container("worker-heavy"))
    assert f"step victim of run {run_id} is skipped: the event log has its end already" in (
        logs.stdout + logs.stderr
    )
    # And each step was executed once
    once = {"opener": 1, "victim": 1, "closer": 1}
    assert runs.count_events(stack, run_id, "STEP_START") == once
    assert runs.count_events(stack, run_id, "STEP_SUCCESS") == once
    assert Counter(entry.step for entry in runs.executions(stack, run_id)) == once
