"""Step messages that nobody can use: put aside with the reason, whatever is wrong with them."""

import json
from typing import Any, NoReturn

import pytest
from celery import Celery
from celery.exceptions import Reject
from dagster import DagsterInstance
from sqlalchemy.exc import DataError

from dagster_stack.messaging.messages import StepMessage
from dagster_stack.step import step_execution
from dagster_stack.step.step_execution import execute_step
from tests.unit import eventful_jobs
from tests.unit.deliveries import Delivery, dead_letters, delayed, refuse_dead_letters
from tests.unit.holders import Database
from tests.unit.runs_by_hand import message, started_run


@pytest.fixture
def step(instance: DagsterInstance) -> StepMessage:
    run = started_run(instance, eventful_jobs.with_an_event)
    return message(instance, run, "eventful")


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 99},
        {"more": "of it"},
        {"run_id": 3},
        {"run_id": "a\0b"},
        {"run_id": "\ud800"},
        {"run_id": "x" * 256},
        {"step_key": "a\0b"},
        {"step_key": "x" * 2001},
        {"step_key": ""},
        {"version": "9" * 20_000_000},
        {"attempt": 0},
        {"attempt": 2**40},
        {"refused_at": float("nan")},
        {"refused_at": float("inf")},
        {"refused_at": 1e12},
        {"run_id": "nobody's"},
        {"attempt": "first"},
        {"attempt": None},
        {"known_state": "{}"},
        {"known_state": 3},
        {"retry_mode": "often"},
        {"redeliver": "no"},
        {"refused_at": "yesterday"},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_a_message_that_nobody_can_use_is_put_aside_and_harms_nobody(
    app: Celery, step: StepMessage, wrong: dict[str, Any]
) -> None:
    content = {**step.to_json(), **wrong}

    execute_step(Delivery(app), content)

    (letter,) = dead_letters()
    assert 0 < len(letter["reason"]) < 1100
    assert len(json.dumps(letter)) < 200_000
    assert (letter["queue"], letter["worker"], letter["task_id"]) == ("dagster", "worker@here", "a-task")
    assert delayed() == []


@pytest.mark.parametrize("wrong", [{"run_id": "nobody's"}, {"version": 99}], ids=str)
def test_while_the_broker_takes_no_dead_letters_a_message_goes_back_to_its_queue(
    app: Celery, step: StepMessage, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    refuse_dead_letters(monkeypatch)

    with pytest.raises(Reject) as rejection:
        execute_step(Delivery(app), {**step.to_json(), **wrong})

    assert rejection.value.requeue is True


def test_an_error_that_nobody_foresaw_puts_the_message_aside_and_gives_the_step_up(
    app: Celery, step: StepMessage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Celery would acknowledge it, and only its log would know."""

    def surprised(*_: Any) -> NoReturn:
        raise DataError("SELECT 1", {}, Exception("integer out of range"))

    monkeypatch.setattr(step_execution.StepExecution, "_refusal", surprised)

    execute_step(Delivery(app), step.to_json())

    (letter,) = dead_letters()
    assert "integer out of range" in letter["reason"]
    # And who gets it next, when the run has sent it again, finds no dead worker
    assert Database(database_url).taken(step.work, "another").losses == ()
