"""A worker that gets nothing notices it: subscribes anew, connects anew, and in the end lets itself be restarted.

The broker is a stand-in here; with a real one, its consumers removed behind the worker's back, it is tested on the
stack.
"""

from typing import Any

import pytest
from celery import bootsteps
from celery.worker import state

from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.timing import BROKER_ANSWER_SECS
from dagster_stack.worker import subscription
from tests.unit.subscription.stubs import KombuConsumer, Taken, Worker


def test_an_idle_worker_subscribes_anew_again_and_again(worker: Worker) -> None:
    worker.look(95)

    assert worker.task_consumer.renewals == 3
    assert worker.task_consumer.at_broker == {"dagster"}
    assert worker.says() is None


def test_a_subscription_that_the_broker_forgot_is_back_in_half_a_minute(worker: Worker) -> None:
    worker.task_consumer.at_broker = set()

    worker.look(31)

    assert worker.task_consumer.at_broker == {"dagster"}


def test_a_message_that_waits_for_a_deaf_worker_is_taken_within_seconds(worker: Worker) -> None:
    worker.task_consumer.at_broker = set()
    worker.messages["dagster"] = 1

    worker.look(12)

    assert (worker.received, worker.messages["dagster"]) == (1, 0)


def test_a_worker_that_gets_messages_needs_no_other_proof(worker: Worker) -> None:
    for _ in range(20):
        worker.messages["dagster"] = 3
        worker.look(5)

    assert worker.received == 60
    assert worker.task_consumer.renewals == 0


def test_a_worker_whose_processes_are_busy_is_left_alone(worker: Worker) -> None:
    """It holds all it may: that more waits is as it should be."""
    busy = Taken(worker.now)
    state.reserved_requests.add(busy)
    state.active_requests.add(busy)
    worker.messages["dagster"] = 100

    worker.look(200)

    assert worker.task_consumer.renewals == 0
    assert worker.channels == []
    assert worker.says() is None


def test_a_worker_that_puts_a_message_aside_is_busy_with_it(worker: Worker) -> None:
    worker.putting_aside = 1
    worker.task_consumer.at_broker = set()
    worker.messages["dagster"] = 5

    worker.look(100)

    assert worker.channels == []


def test_a_partly_busy_worker_keeps_its_subscription_but_asks_what_waits() -> None:
    """A new subscription would not count what the worker holds: a message too many would wait behind it."""
    worker = Worker(["dagster"], processes=2)
    busy = Taken(worker.now)
    state.reserved_requests.add(busy)
    state.active_requests.add(busy)

    worker.look(100)
    assert worker.task_consumer.renewals == 0

    worker.messages["dagster"] = 1
    with pytest.raises(ConnectionError, match="1 in dagster"):
        worker.look(20)


def test_what_no_subscription_cures_is_a_new_connection_and_then_a_complaint(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that gets nothing, whatever it does
    monkeypatch.setattr(KombuConsumer, "consume", lambda self: setattr(self, "known", set(self.known)))
    worker.task_consumer.at_broker = set()
    worker.messages["dagster"] = 1

    # When it has tried to subscribe, then it connects anew, once
    with pytest.raises(ConnectionError, match=r"messages wait and none comes \(1 in dagster\)"):
        worker.look(30)
    assert worker.task_consumer.renewals == 1
    assert worker.says() is None
    worker.step.stop(worker)
    worker.step.start(worker)

    # And when that was no use, then the watchdog hears of it, until a message comes
    worker.look(20)
    assert worker.says() == "messages wait and none comes"
    worker.received += 1
    worker.look(1)
    assert worker.says() is None


def test_a_message_that_comes_while_the_subscription_ends_is_not_followed_by_another(worker: Worker) -> None:
    """With one process, the next one would wait behind it. Once it is done, the worker subscribes."""
    taken = Taken(worker.now)
    worker.task_consumer.while_canceling = lambda: state.reserved_requests.add(taken)
    worker.look(31)
    assert worker.task_consumer.at_broker == set()

    state.reserved_requests.clear()
    worker.look(1)

    assert worker.task_consumer.at_broker == {"dagster"}


def test_a_connection_that_nobody_reads_is_given_up(worker: Worker) -> None:
    worker.hub.readers.clear()

    with pytest.raises(ConnectionError, match="does not read"):
        worker.look(1)


def test_a_worker_on_its_way_out_takes_nothing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.task_consumer.known = worker.task_consumer.at_broker = set()
    monkeypatch.setattr(subscription, "is_leaving", lambda: True)
    worker.look(100)
    monkeypatch.undo()
    worker.blueprint.state = bootsteps.TERMINATE
    worker.look(100)

    assert worker.task_consumer.at_broker == set()


def test_a_message_that_waits_beside_an_idle_process_is_a_complaint(worker: Worker) -> None:
    waits = Taken(worker.now)
    state.reserved_requests.add(waits)
    worker.look(subscription.STUCK_SECS)
    assert worker.says() is None

    worker.look(1)
    assert worker.says() == "task 1f0c waits for a process for 61 s, though one is idle"

    # When it is executed, all is well
    state.active_requests.add(waits)
    worker.look(1)
    assert worker.says() is None


def test_a_message_may_wait_for_a_process_that_loads_the_code(worker: Worker) -> None:
    worker.pool._pool._waiting_to_start.add(1)
    waits = Taken(worker.now)
    state.reserved_requests.add(waits)

    worker.look(300)

    assert worker.says() is None


def test_a_queue_that_is_not_there_has_nothing_and_its_question_leaves_no_channel(worker: Worker) -> None:
    worker.messages = {"dagster": 3}

    connection: Any = worker.connection
    assert QueueState.of(connection, "dagster").ready == 3
    assert QueueState.of(connection, "none") == QueueState(0, 0)
    assert [channel.open for channel in worker.channels] == [False, False]


def test_no_answer_is_waited_for_without_end(worker: Worker) -> None:
    assert worker.timeouts == [BROKER_ANSWER_SECS]


def test_in_the_embedded_mode_there_is_nothing_to_look_at() -> None:
    worker = Worker(["dagster"])
    worker.step.stop(worker)
    worker.connection.transport.driver_type = "filesystem"

    worker.step.start(worker)

    assert worker.step._timer is None
