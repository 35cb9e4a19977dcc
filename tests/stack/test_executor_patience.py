"""What a run does while nothing happens: hardly anything, until a message must have been lost."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack import faults, runs
from tests.stack.ad_hoc import AdHoc, Spec, naps
from tests.stack.stack import Stack
from tests.stack.test_executor_processes import address
from tests.waiting import wait_until

#: Seconds that an idle run is watched, beginning so many seconds after its step has started.
WATCHED_SECS = 24
SETTLED_SECS = 4
#: Queries of a run in that time, and of the worker that executes its step: "no more than one every few seconds".
QUERIES = WATCHED_SECS // 3
#: Processor seconds of the run's process in that time. Waking twice a second costs a hundredth of this.
PROCESSOR_SECS = 2.4
#: Seconds until a lost step is sent again: two looks, 30 s apart, and as much again for a busy machine.
LOST_SECS = 180
#: Seconds that the only worker of a queue is held, so that another run's message waits there.
HELD_SECS = 25
#: When each connection of these addresses began its last statement.
STATEMENTS = "SELECT host(client_addr), pid, query_start FROM pg_stat_activity WHERE client_addr IN ({})"


@pytest.fixture(scope="module", autouse=True)
def lost(stack: Stack, jobs: AdHoc) -> Iterator[str]:
    """A run whose step's message is lost: first of all, as it takes a minute until that is noticed."""
    (busy,) = jobs.begin(Spec("waiting_line", naps(opener=HELD_SECS), ops=["opener"]))
    runs.wait_for_event(stack, busy, "STEP_START", "opener")
    (run_id,) = jobs.begin(Spec("alone"))
    # Taken off by asking for it, not once the API's figures, some seconds old, say that it is there.
    wait_until(lambda: take(stack, "heavy"), HELD_SECS, "the step waits in its queue", pause=0.2)
    assert stack.wait_for_run(busy)["status"] == "SUCCESS"
    assert not runs.count_events(stack, run_id, "STEP_START"), "too late: nothing was lost"
    yield run_id
    stack.wait_for_run(run_id)


def take(stack: Stack, queue: str) -> list[Any]:
    """The next message of a queue, which is without it from now on."""
    wanted = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
    return list(stack.broker_do("POST", f"queues/{stack.vhost}/{queue}/get", wanted))


def processor_secs(stack: Stack, container: str) -> float:
    """What the run in a container has used so far: its process is the program's child."""
    (run,) = faults.children(stack, container, faults.main_process(stack, container))
    # What follows the name, which may hold anything, in brackets: `man 5 proc_pid_stat`.
    fields = Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_run_with_one_long_step_is_idle(stack: Stack, jobs: AdHoc) -> None:
    # Given a run with one step that takes its time, in a container of its own
    length = SETTLED_SECS + WATCHED_SECS + 4
    with jobs.in_container(Spec("single", naps(single_nap=length))) as (run_id, container):
        runs.wait_for_event(stack, run_id, "STEP_START", "single_nap")
        (execution,) = runs.executions(stack, run_id)
        worker = execution.worker.partition("@")[2]
        addresses = f"'{address(stack, container)}', '{address(stack, worker)}'"
        seen: set[tuple[str, ...]] = set()

        def look() -> float:
            seen.update(map(tuple, stack.sql(STATEMENTS.format(addresses))))
            return float(stack.sql("SELECT extract(epoch FROM now())")[0][0])

        began = wait_until(look, 30, "", until=lambda now: now > execution.at + SETTLED_SECS)
        before, used = set(seen), processor_secs(stack, container)

        # When its database connections are watched for a while
        wait_until(look, WATCHED_SECS * 2, "", until=lambda now: now > began + WATCHED_SECS, pause=0.1)
        used = processor_secs(stack, container) - used
        assert not runs.count_events(stack, run_id, "STEP_SUCCESS"), "too late: it has ended"

        # Then there was a query every few seconds, and hardly any work
        queries = Counter(where for where, *_ in seen - before)
        assert max(queries.values()) <= QUERIES, queries
        assert used < PROCESSOR_SECS
        # And nothing is wrong with the run
        assert before, "nobody was watched"
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)


def test_a_step_whose_message_was_lost_is_sent_again(stack: Stack, lost: str) -> None:
    # Given a run whose only step was in a queue that lost all its messages
    # When nothing is heard of it
    runs.wait_until_told(stack, lost, "its message was lost", LOST_SECS)

    # Then it is sent again, and executed once
    assert stack.wait_for_run(lost)["status"] == "SUCCESS", stack.failure_texts(lost)
    assert runs.count_events(stack, lost, "STEP_START") == {"alone_heavy": 1}
    assert [entry.attempt for entry in runs.executions(stack, lost)] == [1]
    # And what is left of the question for it is nothing
    wait_until(
        lambda: [queue["name"] for queue in stack.broker(f"queues/{stack.vhost}") if queue.get("messages")],
        30, "no message in any queue", until=lambda left: not left,
    )  # fmt: skip
