"""What `make autoscale` learns and says inside the stack."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dagster_stack.client import worker_feed
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging.management import BrokerApi, QueueDepth
from dagster_stack.messaging.workers import Worker
from tests.unit.http_stub import HttpStub


def test_what_is_free_is_read_of_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16 kB\nMemFree:         2 kB\nMemAvailable:    8 kB\n")

    assert worker_feed.available(file) == 8192


def test_a_question_is_answered_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    noted: list[Any] = []

    @contextmanager
    def given(value: Any) -> Any:
        yield value

    api = type("Broker", (), {"read_all": lambda _: (QueueDepth("dagster", 3, 1, 1),)})()
    worker = Worker("dagster@1", ("dagster",), 1, 5, (), 0, held=1, rests=12.5, host="box2")
    monkeypatch.setattr(BrokerApi, "from_environment", lambda _: api)
    monkeypatch.setattr(worker_feed, "connected", lambda _: given(("app", "connection")))
    monkeypatch.setattr(worker_feed, "notes", lambda _: given(noted.append))
    monkeypatch.setattr(worker_feed, "tell_to_rest", lambda *words: told.append(words[2]))
    monkeypatch.setattr(worker_feed, "ask", lambda *_, **__: [worker])
    questions = io.StringIO('{"rest": {"dagster@1": 30}, "workers": true}\n{"note": {"a": 1}}\n')
    answers = io.StringIO()

    assert worker_feed.serve(questions, answers, {}) == 0

    first, second = map(json.loads, answers.getvalue().splitlines())
    assert first["queues"] == {"dagster": {"ready": 3, "in_work": 1}}
    assert first["workers"] == [
        {"name": "dagster@1", "host": "box2", "queues": ["dagster"], "held": 1, "rests": 12.5}
    ]
    assert second.keys() == {"queues", "memory", "processors"}
    assert (told, noted) == ([{"dagster@1": 30}, {}], [{"a": 1}])


@pytest.fixture
def management() -> Iterator[HttpStub]:
    """RabbitMQ's, as a test lets it answer."""
    with HttpStub() as found:
        yield found


def broker(management: HttpStub) -> BrokerApi:
    return BrokerApi(management.url, "user", "password")


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (502, "[]"),
        (200, "<html>"),
        (200, '{"error": "not ready"}'),
        (200, '["a"]'),
        (200, "null"),
        (200, '[{"durable": true}]'),
    ],
)
def test_a_management_that_says_something_else_is_named(
    management: HttpStub, status: int, answer: str
) -> None:
    management.http_status, management.raw_body = status, answer.encode()

    with pytest.raises(BrokerUnreachable, match=r"^RabbitMQ's management does not answer"):
        worker_feed.depths(broker(management))


def test_a_management_that_is_away_is_named() -> None:
    with HttpStub() as management:
        gone = broker(management)

    with pytest.raises(BrokerUnreachable, match=r"^RabbitMQ's management does not answer"):
        worker_feed.depths(gone)


def test_a_queue_that_has_no_numbers_yet_is_empty(management: HttpStub) -> None:
    management.raw_body = b'[{"name": "heavy", "durable": true, "messages_ready": null}]'

    assert worker_feed.depths(broker(management)) == {"heavy": {"ready": 0, "in_work": 0}}
