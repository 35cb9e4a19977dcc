"""Workers as figures: what the last roll call said, and for how long that counts."""

from collections.abc import Iterable
from typing import Any

import pytest
from celery import Celery
from prometheus_client.core import Metric

from dagster_stack.monitoring.workers import STALE_SECS, Present, Workers, ask
from tests.unit.clock import Clock

ONE = Present("abc", ("dagster",), processes=4, busy=3)


def samples(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_workers_are_counted_by_queue_and_code() -> None:
    workers = Workers()
    workers.update([ONE, ONE, Present("def", ("dagster", "heavy"), processes=1, busy=0)])
    found = samples(workers.figures())
    assert found["dagster_workers", "dagster", "abc"] == 2
    assert found["dagster_workers", "dagster", "def"] == 1
    assert found["dagster_workers", "heavy", "def"] == 1
    assert found["dagster_worker_processes", "dagster", "busy"] == 6
    assert found["dagster_worker_processes", "dagster", "idle"] == 3
    assert found["dagster_queue_utilisation", "dagster"] == pytest.approx(6 / 9)


def test_a_worker_that_is_gone_is_forgotten_and_its_queue_has_no_process() -> None:
    workers = Workers()
    workers.update([ONE])
    workers.update([])
    found = samples(workers.figures())
    assert ("dagster_workers", "dagster", "abc") not in found
    assert found["dagster_worker_processes", "dagster", "busy"] == 0
    assert found["dagster_queue_utilisation", "dagster"] == 0


def test_before_the_first_roll_call_nothing_is_said_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagster_stack.monitoring.workers.FIRST_SECS", 0)
    assert {name for name, *_ in samples(Workers().figures())} == {"dagster_code"}


def test_old_answers_are_no_figures() -> None:
    clock = Clock()
    workers = Workers(clock.monotonic)
    workers.update([ONE])
    clock.now += STALE_SECS + 1
    with pytest.raises(TimeoutError, match="roll call"):
        list(workers.figures())
    workers.update([ONE])
    assert list(workers.figures())


@pytest.mark.parametrize(
    ("answer", "present"),
    [
        ({"code": "abc", "queues": ["dagster"], "processes": 4, "busy": 3}, ONE),
        ({"error": "Unknown control command"}, Present("unknown", ("unknown",), 0, 0)),
        ({"code": "", "queues": ["a"], "processes": 1, "busy": 0}, Present("unknown", ("a",), 1, 0)),
    ],
)
def test_a_worker_of_another_app_is_present_with_unknown_code(
    answer: dict[str, Any], present: Present
) -> None:
    assert Present.of(answer) == present


def test_all_that_answer_are_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's broadcast gives one mapping of name to answer a worker, and None when nobody answers."""
    told = [{"a@1": {"code": "abc", "queues": ["dagster"], "processes": 4, "busy": 3}}]
    monkeypatch.setattr("celery.app.control.Control.broadcast", lambda *_, **__: told)
    assert ask("memory://") == [ONE]
    monkeypatch.setattr("celery.app.control.Control.broadcast", lambda *_, **__: None)
    assert ask("memory://") == []


def test_a_worker_knows_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    from celery.worker.control import Panel

    from dagster_stack.worker import roll_call

    roll_call.install()
    app = Celery()
    app.amqp.queues.select(["heavy", "dagster"])

    class State:
        """What Celery hands a command: the app and the worker's consumer."""

        class consumer:  # noqa: N801
            class pool:  # noqa: N801
                num_processes = 2

    state: Any = State()
    state.app = app
    assert Panel.data[roll_call.ROLL_CALL](state) == {
        "code": "",
        "queues": ["dagster", "heavy"],
        "processes": 2,
        "busy": 0,
    }
