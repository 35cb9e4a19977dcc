"""What a worker does with messages that it can't use: a real Celery worker, on kombu's broker in this process's memory.

Messages that RabbitMQ alone can carry, such as a content type that is no text, are tested on the stack.
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any
from uuid import uuid4

import amqp
import pytest
from amqp import serialization
from celery import Celery, _state, signals
from celery.concurrency.base import BasePool
from celery.contrib.testing.worker import start_worker
from celery.worker.consumer.consumer import Consumer as CeleryConsumer
from celery.worker.state import requests
from kombu.transport.memory import Channel, Transport

from dagster_stack.messaging import dead_letters
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.dead_letters import DeadLetter
from dagster_stack.patches.amqp import readable
from dagster_stack.settings import CeleryConfig, Settings
from dagster_stack.worker import consumer
from tests.waiting import wait_until

JSON = ("application/json", "utf-8")
BODY = json.dumps([[], {"number": 1}, {}])
DEEP = 700


class Given:
    """A worker of one task that notes what it is called with, and a way to send it anything."""

    def __init__(self, app: Celery, calls: list[int]) -> None:
        self.app = app
        self.calls = calls

    def send(
        self,
        body: str | bytes,
        content_type: str = "application/json",
        encoding: str = "utf-8",
        **headers: Any,
    ) -> None:
        with self.app.connection_for_write() as connection:
            connection.Producer().publish(
                body,
                exchange="",
                routing_key="dagster",
                content_type=content_type,
                content_encoding=encoding,
                headers=headers,
            )

    def letters(self) -> list[DeadLetter]:
        with self.app.connection_for_read() as connection:
            return list(dead_letters.letters(connection))

    def letter(self) -> DeadLetter:
        """The one message that was put aside; the worker goes on with the next one."""
        self.send(BODY, **task())
        wait_until(lambda: self.calls, 10, "the next message was executed", pause=0.02)
        (letter,) = wait_until(self.letters, 10, "the message was put aside", pause=0.02)
        wait_until(Channel.queues["dagster"].qsize, 5, "the queue is empty", lambda n: n == 0, 0.02)
        return letter


def deep(template: str) -> str:
    """Lists within lists, of which this Python reads as many from JSON as it can't pickle."""
    return template % ("[" * DEEP + "]" * DEEP)


def pickling(apply: Any) -> Any:
    """A pool that, as Celery's prefork pool does, pickles in the main process what it hands over."""

    def apply_async(self: Any, target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
        pickle.dumps((args, kwargs))
        return apply(self, target, args, kwargs, **options)

    return apply_async


def task(**headers: Any) -> dict[str, Any]:
    return {"task": "count", "id": str(uuid4()), **headers}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    folder = tmp_path_factory.mktemp("home")
    settings = Settings.from_environment({"DAGSTER_HOME": str(folder)})
    config = {
        "accept_content": ["json"],
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "broker_transport_options": {"polling_interval": 0.02},
    }
    made = make_app(
        CeleryConfig(broker="memory://localhost", backend="disabled://", config_source=config), settings
    )
    made.set_current()
    calls: list[int] = []

    @made.task(name="count", shared=False)
    def count(number: int) -> None:
        calls.append(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CELERY_BROKER_URL", raising=False)
        patch.setattr(serialization, "pstr_t", serialization.pstr_t)
        patch.setattr(serialization, "PROPERTY_CLASSES", serialization.PROPERTY_CLASSES)
        patch.setattr(consumer, "PAUSE_SECS", 0.1)
        patch.setattr(BasePool, "apply_async", pickling(BasePool.apply_async))
        # With RabbitMQ the event loop wakes up for it; the loop for this broker looks every two seconds.
        patch.setattr(consumer.Consumer, "call_soon", consumer.Consumer.call_soon_ack)
        consumer.install(made)
        # Else Celery would take over the logging of all tests that follow.
        patch.setattr(signals.setup_logging, "receivers", [])
        signals.setup_logging.connect(lambda **_: None, weak=False)
        patch.setattr(_state, "default_app", _state.default_app)
        patch.setattr(_state._tls, "current_app", _state._tls.current_app)
        Channel.queues.clear()
        Transport.global_state.clear()
        with start_worker(made, pool="solo", perform_ping_check=False, shutdown_timeout=20):
            yield Given(made, calls)
    made.close()


@pytest.fixture
def given(worker: Given) -> Given:
    worker.calls.clear()
    if dead_letters.QUEUE.name in Channel.queues:
        Channel.queues[dead_letters.QUEUE.name].queue.clear()
    return worker


@pytest.mark.parametrize(
    ("body", "kind", "headers", "reason"),
    [
        pytest.param("hello", ("text/plain", "utf-8"), {}, "can't be read", id="not for us"),
        pytest.param(b"\xff\xfe", JSON, {}, "can't be read", id="no text"),
        pytest.param("{broken", JSON, {}, "can't be read", id="no JSON"),
        pytest.param("", JSON, {}, "not a message of Celery's", id="empty"),
        pytest.param('{"a": 1}', JSON, {}, "not a message of Celery's", id="no task"),
        pytest.param('{"task": ["a"]}', JSON, {}, "not a message", id="a list as task"),
        pytest.param(BODY, JSON, {"task": "other", "id": "1"}, "no task 'other'", id="task"),
        pytest.param(BODY, JSON, {"task": "other"}, "header id", id="task without id"),
        pytest.param(BODY, JSON, {"task": "count"}, "header id is None", id="no id"),
        pytest.param(BODY, JSON, {"task": [1], "id": "1"}, "unhashable", id="odd task"),
        pytest.param(
            pickle.dumps(1), ("application/x-python-serialize", "binary"), task(), "untrusted", id="pickle"
        ),
        pytest.param("a: 1", ("application/x-yaml", "utf-8"), task(), "untrusted", id="yaml"),
        pytest.param("5", JSON, task(), "its body", id="a number as body"),
        pytest.param("null", JSON, task(), "its body", id="nothing as body"),
        pytest.param("[[], [], {}]", JSON, task(), "its body", id="a list as names"),
        pytest.param(deep('{"task": "count", "id": "1", "args": [%s], "kwargs": {}}'), JSON, {}, "deeper", id="deep, of old"),
        pytest.param(deep('{"args": [%s], "kwargs": {}}'), JSON, task(), "deeper", id="deep"),
        pytest.param(deep("[[%s], {}, {}]"), JSON, task(), "deeper", id="deep arguments"),
        pytest.param(BODY, JSON, task(group=json.loads(deep("%s"))), "deeper", id="deep header"),
        pytest.param(BODY, JSON, {"task": json.loads(deep("%s")), "id": "1"}, "deeper", id="deep task"),
        pytest.param(BODY, JSON, task(eta="soon"), "invalid ETA", id="eta"),
        pytest.param(BODY, JSON, task(expires="soon"), "invalid expires", id="expires"),
        pytest.param(BODY, JSON, task(timelimit=["a", 1]), "timelimit", id="time limit"),
        pytest.param(BODY, JSON, task(timelimit=[1]), "timelimit", id="one time limit"),
        pytest.param(BODY, JSON, task(stamped_headers=5), "stamped", id="stamps"),
        pytest.param(BODY, JSON, task(retries="x"), "retries", id="retries"),
        pytest.param(BODY, JSON, task(compression="no"), "can't be read", id="compression"),
    ],
)  # fmt: skip
def test_what_is_of_no_use_is_put_aside_with_its_reason_and_the_worker_goes_on(
    given: Given, body: str | bytes, kind: tuple[str, str], headers: dict[str, Any], reason: str
) -> None:
    given.send(body, *kind, **headers)

    letter = given.letter()

    assert reason in letter.reason
    assert letter.queue == "dagster"
    assert letter.content_type == kind[0]
    assert given.calls == [1]


def test_a_sound_message_is_executed_and_nothing_is_put_aside(given: Given) -> None:
    given.send(BODY, **task(timelimit=[None, None], eta=None, stamped_headers=None, retries=0))
    given.send(BODY, **task(timelimit=[5, 2.5]))

    wait_until(lambda: given.calls, 10, "both are executed", lambda calls: len(calls) == 2, 0.02)
    assert given.letters() == []


def test_an_expired_message_is_celerys_and_not_put_aside(given: Given) -> None:
    given.send(BODY, **task(expires="2001-01-01T00:00:00+00:00"))
    given.send(BODY, **task())

    wait_until(lambda: given.calls, 10, "the other one is executed", pause=0.02)
    assert given.calls == [1]
    assert given.letters() == []


def test_what_can_not_be_put_aside_goes_back_to_its_queue_and_is_put_aside_later(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a broker that takes no messages
    tries: list[str] = []

    def refuse(_: Celery, letter: DeadLetter) -> None:
        tries.append(letter.reason)
        raise TimeoutError("no answer")

    monkeypatch.setattr(consumer, "publish_dead_letter", refuse)
    given.send("hello", "text/plain")
    wait_until(lambda: tries, 10, "three tries", lambda seen: len(seen) >= 3, 0.02)
    assert given.letters() == []

    # When it takes them again, then it is put aside, once
    monkeypatch.setattr(consumer, "publish_dead_letter", dead_letters.publish_dead_letter)

    assert "can't be read" in given.letter().reason


def test_a_failure_of_the_worker_itself_is_not_the_messages(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker with a broken pool would put good messages aside, one after the other."""
    made = consumer.Consumer.__new__(consumer.Consumer)
    made.connection_errors = made.channel_errors = ()
    message = type("Message", (), {"headers": task(), "decode": lambda self: json.loads(BODY)})()

    def broken(_: Any) -> None:
        requests["1"] = type("Request", (), {"message": message})()
        raise RuntimeError("the pool is broken")

    monkeypatch.setattr(CeleryConsumer, "create_task_handler", lambda self: broken)
    try:
        with pytest.raises(RuntimeError):
            made.create_task_handler()(message)
    finally:
        requests.pop("1")


def test_text_that_is_none_does_not_end_the_worker() -> None:
    assert readable(b"text/\xff") == "text/\\xff"
    assert readable("ü".encode()) == "ü"
    assert readable("F") == "F"


def header_frame(table: bytes) -> bytes:
    """What RabbitMQ sends before a message's body, whose only property is a table of headers."""
    basic, headers_alone = 60, 1 << 13
    return pack(">HHQHI", basic, 0, 0, headers_alone, len(table)) + table


@pytest.mark.usefixtures("app_with_consumer")
@pytest.mark.parametrize("value", ["deep", "late", "odd"])
def test_headers_that_py_amqp_can_not_read_are_none_and_do_not_end_the_worker(
    value: str,
) -> None:
    nested = b""
    for _ in range(3000):
        nested = b"A" + pack(">I", len(nested)) + nested
    values = {"deep": nested, "late": b"T" + pack(">Q", 2**62), "odd": b"?"}

    message = amqp.Message()
    message.inbound_header(header_frame(b"\x01a" + values[value]))

    assert (message.properties, message.ready) == ({}, True)
    # And others are read as ever
    message.inbound_header(header_frame(b"\x01a" + b"I" + pack(">i", 5)))
    assert message.properties == {"application_headers": {"a": 5}}


@pytest.fixture
def app_with_consumer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Celery:
    monkeypatch.setattr(serialization, "pstr_t", serialization.pstr_t)
    monkeypatch.setattr(serialization, "PROPERTY_CLASSES", serialization.PROPERTY_CLASSES)
    app = make_app(CeleryConfig(), Settings.from_environment({"DAGSTER_HOME": str(tmp_path)}))

    consumer.install(app)
    return app


def test_an_app_gets_its_consumer(app_with_consumer: Celery) -> None:
    assert app_with_consumer.conf.worker_consumer == "dagster_stack.worker.consumer:Consumer"
    assert serialization.pstr_t is readable
