"""A worker takes no message that it has no room for: after a reconnect, and on several queues, without the broker's count."""

import pytest
from celery.worker import state

from dagster_stack.worker import subscription
from tests.unit.subscription.stubs import Message, Worker, done


def test_after_a_reconnect_nothing_waits_behind_what_is_still_worked_on(worker: Worker) -> None:
    # Given a worker whose only process has a long step when the connection breaks
    long = worker.work()
    worker.step.stop(worker)
    worker.connect()
    worker.messages["dagster"] = 2

    # Then it takes nothing, and is well
    worker.look(3600)
    assert worker.task_consumer.at_broker == set()
    assert (worker.received, worker.says(), worker.channels) == (0, None, [])
    # And says what it is there for
    assert [queue.name for queue in worker.task_consumer.queues] == ["dagster"]

    # When the step has ended, then it goes on within a second
    done(long)
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1}
    worker.look(1)
    assert worker.received == 1


def test_a_step_that_began_as_the_connection_broke_counts_too(worker: Worker) -> None:
    """Celery has it among the active ones alone."""
    long = worker.work()
    state.reserved_requests.discard(long)
    worker.step.stop(worker)
    worker.connect()

    worker.look(10)

    assert worker.task_consumer.at_broker == set()


def test_after_a_reconnect_a_partly_busy_worker_takes_what_it_has_room_for() -> None:
    # Given a worker with three processes, two of them at work when the connection breaks
    worker = Worker(["dagster"], processes=3)
    first, second = worker.work(), worker.work()
    worker.step.stop(worker)
    worker.connect()
    assert worker.task_consumer.given == {"dagster": 1}

    # When they end one after the other, beside what came since
    since = worker.receive("dagster")
    worker.turn()
    assert worker.task_consumer.given == {}
    worker.end(first)
    assert worker.task_consumer.given == {"dagster": 1}
    worker.end(second)
    assert worker.task_consumer.given == {"dagster": 2}
    worker.end(since.taken)

    # Then in the end the broker's count is enough, and no subscription follows its messages any more
    assert worker.task_consumer.given == {"dagster": 3}
    renewals = worker.task_consumer.renewals
    for _ in range(3):
        worker.end(worker.receive("dagster").taken)
    assert worker.task_consumer.renewals == renewals
    # And of former ones nothing is kept
    assert len(worker.task_consumer.channel.callbacks) == 1


def test_a_message_of_a_former_subscription_that_comes_late_is_counted_too(on_two: Worker) -> None:
    """The worker rests without a wait for the broker, which may have sent one more."""
    first = on_two.receive("dagster")
    on_two.turn()
    del on_two.wanted["heavy"]
    on_two.task_consumer.queues = [queue for queue in on_two.task_consumer.queues if queue.name == "dagster"]

    # When it comes while the worker subscribes again, to the one queue that is left
    late: list[Message] = []
    on_two.task_consumer.while_subscribing = lambda: late.append(on_two.receive("dagster"))
    on_two.end(first.taken)

    # Then nothing more is to come, and what comes all the same goes back
    assert late[0].taken
    assert on_two.task_consumer.given == {}
    on_two.end(late[0].taken)
    assert on_two.task_consumer.given == {"dagster": 1}


def test_what_ended_without_an_answer_is_noticed_at_the_next_look() -> None:
    worker = Worker(["dagster"], processes=3)
    first, _ = worker.work(), worker.work()
    worker.step.stop(worker)
    worker.connect()

    done(first)
    worker.look(1)

    assert worker.task_consumer.given == {"dagster": 2}


def test_no_queue_gives_a_worker_anything_while_it_works_on_a_message_of_another(on_two: Worker) -> None:
    """Else it holds a step of one queue while it executes a long one of the other."""
    assert on_two.task_consumer.given == {"dagster": 1, "heavy": 1}

    # When each queue gives one at the same instant
    first, second = on_two.receive("dagster"), on_two.receive("heavy")
    on_two.turn()

    # Then the second one goes back at once, and no queue gives more
    assert (bool(first.taken), second.taken, second.is_back) == (True, None, True)
    assert on_two.task_consumer.at_broker == set()
    on_two.look(100)
    assert on_two.task_consumer.at_broker == set()

    # And once the process is done, all of them do
    on_two.end(first.taken)
    assert on_two.task_consumer.given == {"dagster": 1, "heavy": 1}


def test_a_message_goes_back_only_when_no_queue_could_give_it_to_this_worker_again(on_two: Worker) -> None:
    first = on_two.receive("dagster")
    seen: list[set[str]] = []
    surplus = on_two.receive("heavy")
    surplus.reject_log_error = lambda *_, **__: seen.append(set(on_two.task_consumer.at_broker))  # type: ignore[method-assign]

    on_two.turn()

    assert first.taken
    assert seen == [set()]


def test_queues_take_turns(on_two: Worker) -> None:
    """The first one that is subscribed to is the first to give: one with a backlog would leave the others nothing."""
    firsts = []
    for _ in range(4):
        first = on_two.task_consumer.order[0]
        firsts.append(first)
        on_two.end(on_two.receive(first).taken)

    assert firsts == ["dagster", "heavy", "dagster", "heavy"]


def test_a_worker_on_several_queues_takes_as_many_messages_as_it_has_processes() -> None:
    worker = Worker(["dagster", "heavy"], processes=3)

    taken = [
        worker.receive("dagster"),
        worker.receive("heavy"),
        worker.receive("dagster"),
        worker.receive("heavy"),
    ]
    worker.turn()

    assert [bool(each.taken) for each in taken] == [True, True, True, False]
    worker.end(taken[0].taken)
    assert worker.task_consumer.given == {"dagster": 1, "heavy": 1}
    # Also when there is room before all are busy
    worker.end(taken[1].taken)
    assert worker.task_consumer.given == {"dagster": 2, "heavy": 2}


def test_a_worker_that_leaves_gives_back_and_subscribes_to_nothing(
    on_two: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = on_two.receive("dagster"), on_two.receive("heavy")
    monkeypatch.setattr(subscription, "is_leaving", lambda: True)

    on_two.end(first.taken)

    assert second.is_back
    assert on_two.task_consumer.at_broker == set()


def test_what_was_too_much_on_a_broken_connection_is_not_given_back_on_the_next(on_two: Worker) -> None:
    first, second = on_two.receive("dagster"), on_two.receive("heavy")
    on_two.step.stop(on_two)
    on_two.soon.clear()
    on_two.connect()

    on_two.end(first.taken)

    assert not second.is_back
    assert on_two.task_consumer.given == {"dagster": 1, "heavy": 1}


def test_a_worker_on_one_queue_is_left_to_the_broker(worker: Worker) -> None:
    for _ in range(5):
        worker.end(worker.receive("dagster").taken)

    assert worker.task_consumer.renewals == 0


def test_a_queue_that_is_added_is_counted_with_the_others(worker: Worker) -> None:
    worker.wanted["heavy"] = None
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1, "heavy": 1}

    first, second = worker.receive("heavy"), worker.receive("dagster")
    worker.turn()

    assert first.taken
    assert second.is_back


def test_queues_that_were_added_are_subscribed_and_those_that_were_canceled_stay_so(worker: Worker) -> None:
    worker.wanted["heavy"] = None
    worker.look(1)
    assert worker.task_consumer.at_broker == {"dagster", "heavy"}

    # As `cancel_consumer` does it
    del worker.wanted["dagster"]
    worker.task_consumer.queues = [queue for queue in worker.task_consumer.queues if queue.name == "heavy"]
    worker.task_consumer.known = worker.task_consumer.at_broker = {"heavy"}
    worker.turn()
    worker.messages["dagster"] = 10
    worker.look(100)

    assert worker.task_consumer.at_broker == {"heavy"}
    assert worker.says() is None
