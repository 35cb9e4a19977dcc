"""A broker that takes no messages, for want of disk or memory: the run is told.

That RabbitMQ says so, and goes on afterwards, is tested on the stack; here py-amqp gets what it then receives.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from amqp import spec
from celery import Celery
from kombu.transport.memory import Channel, Transport

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging import run_connection
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.messages import StepMessage
from dagster_stack.messaging.run_connection import ALARM_PAUSE_SECS, RunConnection, wake_up
from dagster_stack.settings import CeleryConfig, Settings

STEP = StepMessage(
    run_id="run-1", step_key="a", attempt=1, known_state="{}", retry_mode="deferred", code="c", redeliver=True
)
REASON = "The broker takes no messages: it is short of disk or of memory"


@pytest.fixture
def link(tmp_path: Path) -> Iterator[RunConnection]:
    """A link that stands, to a broker in this process's memory."""
    settings = Settings.from_environment({"DAGSTER_HOME": str(tmp_path)})
    app: Celery = make_app(CeleryConfig(broker="memory://localhost", backend="disabled://"), settings)
    Channel.queues.clear()
    Transport.global_state.clear()
    link = RunConnection(app, "run-1")
    link.connect()
    link.wait(0)
    yield link
    link.close()
    app.close()


def send(link: RunConnection) -> None:
    link.send(STEP, "a_job", "dagster", 5)


def sent() -> int:
    return int(Channel.queues["dagster"].qsize()) if "dagster" in Channel.queues else 0


def alarm(link: RunConnection) -> None:
    with pytest.raises(BrokerUnreachable):
        link._on_blocked("as py-amqp says it")


def test_rabbitmqs_notice_ends_the_wait_for_a_confirmation(link: RunConnection) -> None:
    # Given a connection of py-amqp
    connection: Any = amqp.Connection()
    parts: Any = SimpleNamespace(transport=SimpleNamespace(driver_type="amqp"), connection=connection)
    link._listen_for_alarms(parts)
    text = b"low on disk"

    # When the notice comes, then whoever waits is told why
    with pytest.raises(BrokerUnreachable, match=REASON):
        connection.dispatch_method(spec.Connection.Blocked, b"\0\x0a\0\x3c" + bytes([len(text)]) + text, None)
    # And its end is heard
    connection.dispatch_method(spec.Connection.Unblocked, b"\0\x0a\0\x3d", None)
    assert link._alarm_is_over


def test_during_an_alarm_nothing_more_is_sent_and_all_say_why_at_once(link: RunConnection) -> None:
    """What is sent into an alarm is not lost: the broker takes it afterwards, and once more for each try."""
    connection = link._connection
    alarm(link)
    begin = time.monotonic()

    for _ in range(3):
        with pytest.raises(BrokerUnreachable, match=REASON):
            send(link)
        with pytest.raises(BrokerUnreachable, match=REASON):
            link.queue_state("dagster")

    assert time.monotonic() - begin < 2
    assert sent() == 0
    assert link._connection is connection


def test_during_an_alarm_wake_ups_come_as_ever(link: RunConnection) -> None:
    alarm(link)
    link._wake(None)

    assert link.wait(1) is True
    assert link.wait(0.01) is False


def test_after_an_alarm_steps_are_sent_on_a_new_connection(link: RunConnection) -> None:
    """A late confirmation on the old one must not pass for that of another message."""
    connection = link._connection
    alarm(link)
    link._on_unblocked()

    send(link)

    assert sent() == 1
    assert link._connection is not connection
    assert link.queue_state("dagster").ready == 1


def test_the_end_of_an_alarm_is_heard_by_the_next_try(
    link: RunConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm(link)
    connection = link._connection
    assert connection
    notices = [link._on_unblocked]

    def drain_events(timeout: float) -> None:
        if not notices:
            raise TimeoutError
        notices.pop()()

    monkeypatch.setattr(connection, "drain_events", drain_events)

    send(link)

    assert sent() == 1


def test_a_link_closes_without_a_word_to_a_broker_that_reads_nothing(
    link: RunConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm(link)
    asked: list[str] = []
    monkeypatch.setattr(link._queue, "cancel", asked.append)

    link.close()

    assert asked == []
    assert link._connection is None


class BlockedBroker:
    """A pool's producer and its connection to a broker that answers each message by its notice of an alarm."""

    def __init__(self) -> None:
        self.sent = self.dropped = 0
        self.amqp = SimpleNamespace(on_blocked=None, transport=None)
        self.connection = SimpleNamespace(
            transport=SimpleNamespace(driver_type="amqp"), connect=lambda: self.amqp, collect=self.collect
        )
        self.producer = SimpleNamespace(connection=self.connection, publish=self.publish)
        self.app: Any = SimpleNamespace(producer_pool=SimpleNamespace(acquire=self.acquire))

    @contextmanager
    def acquire(self, block: bool, timeout: float) -> Iterator[Any]:
        yield self.producer

    def publish(self, *_: Any, **__: Any) -> None:
        self.sent += 1
        self.amqp.on_blocked("as py-amqp says it")

    def collect(self, socket_timeout: float) -> None:
        self.dropped += 1


def test_a_step_that_ends_in_an_alarm_waits_for_no_confirmation_of_its_wake_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process had each step of an alarm 5 s longer."""
    broker, clock = BlockedBroker(), SimpleNamespace(now=1000.0)
    monkeypatch.setattr("dagster_stack.messaging.run_connection.time.monotonic", lambda: clock.now)
    monkeypatch.setattr(run_connection._Alarm, "until", 0.0)

    # When two steps end: the broker is asked once, and what it may confirm later is not waited for by others
    wake_up(broker.app, "run-1")
    wake_up(broker.app, "run-1")
    assert (broker.sent, broker.dropped) == (1, 1)

    # Then it is asked again a while later
    clock.now += ALARM_PAUSE_SECS
    wake_up(broker.app, "run-1")
    assert broker.sent == 2
