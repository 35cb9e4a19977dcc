"""What `make autoscale` learns and says inside the stack."""

import io
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dagster_stack.client import worker_feed
from dagster_stack.messaging.management import BrokerApi, QueueDepth
from dagster_stack.messaging.workers import Worker


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

    broker = type("Broker", (), {"read_all": lambda _: (QueueDepth("dagster", 3, 1, 1),)})()
    worker = Worker("dagster@1", ("dagster",), 1, 5, (), 0, held=1, rests=12.5, host="box2")
    monkeypatch.setattr(BrokerApi, "from_environment", lambda _: broker)
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
