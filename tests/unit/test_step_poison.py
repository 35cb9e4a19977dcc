"""Step messages that nobody can use: put aside with the reason, whatever is wrong with them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from celery import Celery
from celery.exceptions import Reject
from dagster import DagsterInstance

from dagster_stack.broker.messages import StepMessage
from dagster_stack.worker.step_execution import execute_step
from tests.unit import eventful_jobs
from tests.unit.clock import Clock
from tests.unit.deliveries import Delivery, buried, empty_the_memory, memory_app, postponed
from tests.unit.runs_by_hand import message, started_run


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    app = memory_app(tmp_path)
    yield app
    app.close()
    empty_the_memory()


@pytest.fixture
def step(postgres_instance: DagsterInstance) -> StepMessage:
    run = started_run(postgres_instance, eventful_jobs.with_an_event)
    return message(postgres_instance, run, "eventful")


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 99},
        {"more": "of it"},
        {"run_id": 3},
        {"run_id": "nobody's"},
        {"attempt": "first"},
        {"attempt": None},
        {"known_state": "{}"},
        {"known_state": 3},
        {"retry_mode": "often"},
        {"redeliver": "no"},
        {"refused_at": "yesterday"},
    ],
    ids=str,
)
def test_a_message_that_nobody_can_use_is_put_aside_and_harms_nobody(
    app: Celery, step: StepMessage, wrong: dict[str, Any]
) -> None:
    content = {**step.to_json(), **wrong}

    execute_step(Delivery(app), content)

    (letter,) = buried()
    assert letter["reason"]
    assert (letter["queue"], letter["worker"], letter["task_id"]) == ("dagster", "worker@here", "a-task")
    assert postponed() == []


def test_while_the_broker_takes_no_dead_letters_a_message_goes_back_to_its_queue(
    app: Celery, step: StepMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> NoReturn:
        raise ConnectionResetError("refused")

    monkeypatch.setattr("dagster_stack.worker.delivery.bury_task", refused)
    monkeypatch.setattr("dagster_stack.worker.delivery.time", Clock())

    with pytest.raises(Reject) as rejection:
        execute_step(Delivery(app), replace(step, run_id="nobody's").to_json())

    assert rejection.value.requeue is True
