"""A run's link to the broker, on kombu's transports that need no server: steps go out, wake-ups come in.

What RabbitMQ itself does (priorities, lost connections, heartbeats) is tested on the stack.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import pools
from kombu.transport.memory import Channel
from kombu.transport.virtual import Base64

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging import run_connection as broker
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.messages import StepMessage
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.messaging.run_connection import RunConnection, wake_up
from dagster_stack.messaging.task_names import STEP_TASK
from dagster_stack.settings import CeleryConfig, Settings

STEP = StepMessage("run-1", "a.b[c]", 2, "{}", "deferred", "", True)


@pytest.fixture
def link(app: Celery) -> Iterator[RunConnection]:
    link = RunConnection(app, "run-1")
    yield link
    link.close()


def queues() -> set[str]:
    """The names of all queues in the broker."""
    return set(Channel.queues)


# --- steps ----------------------------------------------------------------------------------------------------


def test_a_step_becomes_a_message_in_its_queue_with_its_id_and_priority(link: RunConnection) -> None:
    link.send(STEP, "a_job", "heavy", 7)

    message = Channel.queues["heavy"].get_nowait()
    assert message["properties"]["priority"] == 7
    assert message["properties"]["delivery_mode"] == 2
    headers = message["headers"]
    assert (headers["task"], headers["id"]) == (STEP_TASK, STEP.task_id)
    assert (headers["shadow"], headers["ignore_result"]) == ("a_job: a.b[c]", True)
    # And JSON is all of it
    _, named, _ = json.loads(Base64().decode(message["body"]))
    assert message["content-type"] == "application/json"
    assert StepMessage.from_json(named["message"]) == STEP


def test_what_a_message_shows_in_lists_does_not_grow_with_the_step(link: RunConnection) -> None:
    """Flower and `celery inspect` show arguments: the run and the attempt, not what the step must know."""
    link.send(StepMessage("run-1", "a", 1, "x" * 10_000, "deferred", "", True), "a_job", "dagster", 5)

    headers = Channel.queues["dagster"].get_nowait()["headers"]
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("run-1", "attempt 1")


# --- wake-ups ---------------------------------------------------------------------------------------------------


def connected(link: RunConnection) -> RunConnection:
    """A link that stands; its first look, for what was missed before, is done."""
    link.connect()
    assert link.wait(0)
    return link


def test_a_wake_up_ends_the_wait(link: RunConnection, app: Celery) -> None:
    connected(link)
    begin = time.monotonic()

    waker = threading.Timer(0.1, wake_up, (app, "run-1"))
    waker.start()

    assert link.wait(30) is True
    assert time.monotonic() - begin < 10
    waker.join()


def test_without_a_wake_up_the_wait_ends_at_its_time(link: RunConnection) -> None:
    connected(link)
    begin = time.monotonic()

    assert link.wait(0.3) is False

    assert 0.25 <= time.monotonic() - begin < 10


def test_a_new_link_looks_at_once(link: RunConnection) -> None:
    """Whoever ended a step before the queue was there has woken nobody."""
    assert link.wait(30) is True
    assert link.wait(0) is False


def test_many_wake_ups_at_once_are_one(link: RunConnection, app: Celery) -> None:
    connected(link)
    for _ in range(50):
        wake_up(app, "run-1")

    assert link.wait(5) is True
    assert link.wait(0.05) is False


def test_a_run_is_not_woken_by_another_ones_wake_up(link: RunConnection, app: Celery) -> None:
    connected(link)
    other = connected(RunConnection(app, "run-2"))
    try:
        wake_up(app, "run-2")

        assert link.wait(0.1) is False
        assert other.wait(5) is True
    finally:
        other.close()


def test_a_wake_up_for_a_run_that_is_over_leaves_nothing(app: Celery) -> None:
    before = queues()

    wake_up(app, "run-1")

    assert queues() == before


# --- queues -------------------------------------------------------------------------------------------------------


def test_a_queue_is_known_by_what_waits_in_it(link: RunConnection) -> None:
    assert link.queue_state("heavy").ready == 0

    for _ in range(3):
        link.send(STEP, "a_job", "heavy", 5)

    assert link.queue_state("heavy").ready == 3
    assert link.queue_state("dagster").ready == 0


def test_a_queue_that_does_not_exist_is_empty_and_the_link_goes_on(link: RunConnection, app: Celery) -> None:
    connected(link)

    assert link.queue_state("nobody_ever_sent_here") == QueueState(0, 0)

    wake_up(app, "run-1")
    assert link.wait(5) is True


def test_asking_for_queues_leaves_no_channel_open(link: RunConnection) -> None:
    """RabbitMQ allows 2047 channels on a connection, and a run asks every two seconds.

    RabbitMQ closes the channel of a question for a queue that is not there; py-amqp opens it again at once.
    """
    connected(link)
    link.send(STEP, "a_job", "heavy", 5)
    connection = link._connection
    assert connection
    before = len(connection.connection.channels)

    for _ in range(20):
        link.queue_state("heavy")
        link.queue_state("none")

    assert len(connection.connection.channels) == before


def test_a_closed_link_leaves_no_queue(app: Celery) -> None:
    before = queues()
    link = connected(RunConnection(app, "run-1"))
    assert queues() > before

    link.close()

    assert queues() == before


def test_a_link_that_was_never_opened_is_closed_without_a_connection(app: Celery) -> None:
    RunConnection(app, "run-1").close()

    assert queues() == set()


def test_a_link_opens_again_after_it_was_closed(link: RunConnection, app: Celery) -> None:
    connected(link)
    link.close()

    assert link.wait(5) is True
    wake_up(app, "run-1")
    assert link.wait(5) is True


# --- a broker that is away -------------------------------------------------------------------------------------------


@pytest.fixture
def nobody() -> Iterator[RunConnection]:
    """A link to a broker that is not there."""
    app = Celery("a", broker="amqp://127.0.0.1:1//", set_as_current=False)
    yield RunConnection(app, "run-1")
    app.close()


def test_every_call_says_that_nobody_answers_and_soon(nobody: RunConnection) -> None:
    begin = time.monotonic()

    for call in (
        lambda: nobody.send(STEP, "a_job", "dagster", 5),
        lambda: nobody.wait(60),
        lambda: nobody.queue_state("dagster"),
        nobody.connect,
    ):
        with pytest.raises(BrokerUnreachable, match="not answer"):
            call()

    assert time.monotonic() - begin < 10
    nobody.close()


def test_a_broker_that_is_away_is_not_asked_all_the_time(
    nobody: RunConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []
    open_link = nobody._app.connection_for_write

    def counted(**options: Any) -> Any:
        tries.append(time.monotonic())
        return open_link(**options)

    monkeypatch.setattr(nobody._app, "connection_for_write", counted)
    monkeypatch.setattr(broker, "RETRY_SECS", 3600)

    for _ in range(20):
        with pytest.raises(BrokerUnreachable):
            nobody.wait(0)

    assert len(tries) == 1


def test_a_broker_that_is_back_is_found(
    link: RunConnection, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a link whose connection breaks, as py-amqp tells it
    connected(link)
    monkeypatch.setattr(broker, "RETRY_SECS", 0)
    connection = link._connection
    assert connection

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(connection, "drain_events", broken)
    with pytest.raises(BrokerUnreachable, match="Connection reset by peer"):
        link.wait(1)

    # When it is used again, then it is a new one, and what was missed meanwhile is looked for
    assert link.connections == 1
    assert link.wait(5) is True
    assert link._connection is not connection
    assert link.connections == 2
    link.send(STEP, "a_job", "dagster", 5)
    assert link.queue_state("dagster").ready == 1
    wake_up(app, "run-1")
    assert link.wait(5) is True


def test_an_error_that_is_not_the_brokers_is_no_absence(link: RunConnection) -> None:
    """A mistake in this program must not look like a broker that will be back."""
    connected(link)

    with pytest.raises(AttributeError):
        link.send("no message", "a_job", "dagster", 5)  # type: ignore[arg-type]


def test_a_wake_up_that_nobody_takes_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing depends on it: the step has ended, and the run looks by itself."""
    caplog.set_level("INFO")
    app = Celery("a", broker="amqp://127.0.0.1:1//", set_as_current=False)
    app.conf.broker_connection_timeout = 1

    wake_up(app, "run-1")

    assert "run run-1 was not woken" in caplog.text
    app.close()


# --- the folder of the embedded mode -------------------------------------------------------------------------------------


@pytest.fixture
def folder_app(tmp_path: Path) -> Iterator[Celery]:
    settings = Settings.from_environment({"DAGSTER_HOME": str(tmp_path)})
    app = make_app(CeleryConfig(), settings)
    yield app
    app.close()


def test_in_the_embedded_mode_steps_and_wake_ups_go_through_a_folder(
    folder_app: Celery, tmp_path: Path
) -> None:
    link = RunConnection(folder_app, "run-1")
    try:
        link.connect()
        assert link.wait(0)
        link.send(STEP, "a_job", "dagster", 5)
        wake_up(folder_app, "run-1")

        assert link.wait(5) is True
        assert len(list((tmp_path / "broker" / "messages").glob("*.dagster.msg"))) == 1
    finally:
        link.close()


def test_in_the_embedded_mode_a_closed_link_is_in_no_table(folder_app: Celery, tmp_path: Path) -> None:
    """The table of the exchange is a file: what stays there gets a message at every wake-up, for ever."""
    link = RunConnection(folder_app, "run-1")
    link.connect()
    table = tmp_path / "broker" / "control" / "dagster.wakeup.exchange"
    assert "run-1" in table.read_text()

    link.close()
    assert "run-1" not in table.read_text()
    wake_up(folder_app, "run-1")

    assert list((tmp_path / "broker" / "messages").iterdir()) == []


def test_in_the_embedded_mode_workers_say_which_queues_they_consume(
    folder_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders don't know who looks into them: workers are asked, when something waits."""
    asked: list[int] = []

    class Inspect:
        """What `app.control.inspect()` gives: an answer a worker, or None when none answers in time."""

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def __call__(self, **_: Any) -> "Inspect":
            return self

        def active_queues(self) -> Any:
            asked.append(1)
            return self.answer

    link = RunConnection(folder_app, "run-1")
    try:
        assert link.queue_state("heavy") == QueueState(0, 0)
        assert asked == []
        link.send(STEP, "a_job", "heavy", 5)

        monkeypatch.setattr(folder_app.control, "inspect", Inspect(None))
        assert link.queue_state("heavy") == QueueState(1, 0)
        monkeypatch.setattr(folder_app.control, "inspect", Inspect({"w": [{"name": "dagster"}]}))
        assert link.queue_state("heavy") == QueueState(1, 0)
        monkeypatch.setattr(
            folder_app.control, "inspect", Inspect({"w": [{"name": "dagster"}, {"name": "heavy"}]})
        )
        assert link.queue_state("heavy") == QueueState(1, 1)
    finally:
        link.close()


def test_a_wake_up_that_fails_in_whatever_way_harms_no_step(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent from within a step's execution: an error there would end the step that has just succeeded."""

    def broken(*_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'sock'")

    monkeypatch.setattr(broker, "bound_waits", broken)

    wake_up(app, "a run")

    # The error has closed a connection of the pool that all tests of this process share.
    pools.reset()
