"""Workers as figures: what the last roll call said, and for how long that counts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from prometheus_client.core import Metric

from dagster_stack.messaging.workers import Worker, ask
from dagster_stack.monitoring.workers import HOSTS_VARIABLE, STALE_SECS, Workers, roll_calls
from tests.unit.clock import Clock


def worker(name: str, code: str, queues: tuple[str, ...], processes: int | None, busy: int) -> Worker:
    return Worker(name, queues, processes, uptime=None, doing=(), done=0, code=code, busy=busy)


ONE = worker("a@1", "abc", ("dagster",), processes=4, busy=3)


def samples(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_workers_are_counted_by_queue_and_code() -> None:
    workers = Workers()
    workers.update([ONE, ONE, worker("b@2", "def", ("dagster", "heavy"), processes=1, busy=0)])
    found = samples(workers.figures())
    assert found["dagster_workers", "dagster", "abc"] == 2
    assert found["dagster_workers", "dagster", "def"] == 1
    assert found["dagster_workers", "heavy", "def"] == 1
    assert found["dagster_worker_processes", "dagster", "busy"] == 6
    assert found["dagster_worker_processes", "dagster", "idle"] == 3
    assert found["dagster_queue_utilisation", "dagster"] == pytest.approx(6 / 9)


def test_a_further_host_whose_workers_are_gone_has_none_and_one_host_has_no_such_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers()
    workers.update([ONE])
    assert not [name for name, *_ in samples(workers.figures()) if name == "dagster_host_workers"]
    monkeypatch.setenv(HOSTS_VARIABLE, "box2,box3")
    workers = Workers()
    workers.update([ONE, replace(ONE, host="box2"), replace(ONE, host="by-hand")])
    found = samples(workers.figures())
    assert [found["dagster_host_workers", host] for host in ("box2", "box3", "by-hand")] == [1, 0, 1]


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
        ({"error": "Unknown control command"}, worker("a@1", "unknown", ("unknown",), None, 0)),
        ({"code": "", "queues": ["a"], "processes": 1, "busy": 0}, worker("a@1", "unknown", ("a",), 1, 0)),
    ],
)
def test_a_worker_of_another_app_is_present_with_unknown_code(
    answer: dict[str, Any], present: Worker
) -> None:
    assert Worker.of("a@1", answer) == present


class Control:
    """Celery's broadcast: one mapping of name to answer a worker, None when nobody answers. `asked`: of whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str] | None) -> None:
        self._answers = iter(answers)
        self.asked: list[Sequence[str] | None] = []
        monkeypatch.setattr("celery.app.control.Control.broadcast", self.broadcast)

    def broadcast(self, _: str, destination: Sequence[str] | None = None, **__: Any) -> Any:
        self.asked.append(destination)
        names = next(self._answers)
        told = {"code": "abc", "queues": ["dagster"], "processes": 4, "busy": 3}
        return None if names is None else [{name: told} for name in names]


def test_all_that_answer_are_present(monkeypatch: pytest.MonkeyPatch) -> None:
    Control(monkeypatch, ["a@1"], None)
    assert ask(Celery(), None) == [ONE]
    assert ask(Celery(), None) == []


def test_a_known_worker_that_is_slow_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(monkeypatch, ["a@1"], ["b@2"], ["c@3"], ["a@1"])
    assert [each.name for each in ask(Celery(), None, known=["a@1", "b@2"])] == ["a@1", "b@2"]
    # One that is gone is asked once more too, and then no longer known
    assert sorted(each.name for each in ask(Celery(), None, known=["a@1"])) == ["a@1", "c@3"]
    assert control.asked == [None, ["b@2"], None, ["a@1"]]


def test_a_connection_is_kept_as_long_as_somebody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    Control(monkeypatch, ["a@1"], ["a@1"], [], [], ["a@1"])
    calls = roll_calls("memory://")
    # Nobody answers any more, asked twice: whether that is so, a new connection must say
    assert list(calls) == [[ONE], [ONE]]
    assert next(roll_calls("memory://")) == [ONE]
