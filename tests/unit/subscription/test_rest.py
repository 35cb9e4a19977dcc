"""A worker that is told to rest (respite.py) takes nothing more, ends what it has, and goes on later."""

from collections.abc import Callable

import pytest

from dagster_stack.worker import respite, subscription
from tests.unit.subscription.stubs import Message, Worker


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Tell the workers of this process to rest for so many seconds of their own clock; 0: no more."""

    def tell(seconds: float) -> None:
        monkeypatch.setattr(respite, "seconds_left", lambda: seconds)

    return tell


def test_a_worker_at_rest_takes_nothing_and_does_not_subscribe_again(
    worker: Worker, told: Callable[[float], None]
) -> None:
    told(30)
    worker.messages["dagster"] = 3
    worker.look(1)
    received = worker.received

    worker.look(3600)

    # Then it is well all the same, and asks nobody why it gets nothing
    assert worker.task_consumer.at_broker == set()
    assert (worker.received, worker.says(), worker.step.is_at_rest) == (received, None, True)
    assert worker.channels == []
    # And once it need not rest any more it goes on within a second
    told(0)
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1}
    assert not worker.step.is_at_rest
    assert len(worker.task_consumer.channel.callbacks) == 1


def test_a_message_that_was_on_its_way_is_worked_on_before_the_worker_counts_as_at_rest(
    worker: Worker, told: Callable[[float], None]
) -> None:
    # Given a broker that has sent a message before it hears that there is no subscription any more
    late: list[tuple[Message, bool]] = []

    def answer(_size: int, most: int, _over_channel: bool) -> None:
        late.append((worker.receive("dagster"), worker.step.is_at_rest))
        worker.task_consumer.of_each = most

    worker.task_consumer.channel.basic_qos = answer
    told(30)

    worker.look(1)

    # Then it is taken, and who asks for what the worker holds sees it
    ((message, was_at_rest),) = late
    assert message.taken
    assert not was_at_rest
    assert subscription.held(worker) == 1
    # And nothing follows it
    worker.end(message.taken)
    worker.look(60)
    assert (worker.task_consumer.at_broker, worker.step.is_at_rest) == (set(), True)


@pytest.mark.parametrize("queues", [["dagster"], ["dagster", "heavy"]])
def test_a_busy_worker_that_is_told_to_rest_ends_what_it_has(
    queues: list[str], told: Callable[[float], None]
) -> None:
    worker = Worker(queues)
    long = worker.receive("dagster")
    worker.turn()
    told(30)

    worker.look(600)
    assert worker.task_consumer.at_broker == set()
    worker.end(long.taken)
    worker.look(60)

    assert worker.task_consumer.at_broker == set()
    assert (subscription.held(worker), worker.step.is_at_rest) == (0, True)
    told(0)
    worker.look(1)
    assert worker.task_consumer.given == dict.fromkeys(queues, 1)


def test_a_worker_at_rest_stays_so_on_a_new_connection(worker: Worker, told: Callable[[float], None]) -> None:
    told(30)
    worker.look(1)
    worker.step.stop(worker)

    worker.connect()

    assert worker.task_consumer.at_broker == set()
    assert not worker.step.is_at_rest
    worker.look(1)
    assert (worker.task_consumer.at_broker, worker.step.is_at_rest) == (set(), True)
    told(0)
    worker.look(1)
    assert worker.task_consumer.given == {"dagster": 1}
