"""What a worker says of itself when it is asked."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state
from celery.worker.control import Panel

from dagster_stack.messaging.workers import Activity, Worker
from dagster_stack.worker import respite, roll_call

RUN = "1f0c8e0a-7a4e-4f4c-9b5e-4a1d2c3b4e5f"


@pytest.fixture
def taken() -> Iterator[list[Any]]:
    """What the worker's processes work on: held here, since Celery holds it weakly."""
    held: list[Any] = []
    worker_state.active_requests.clear()
    worker_state.total_count.clear()
    yield held
    worker_state.active_requests.clear()
    worker_state.total_count.clear()


class Request:
    """As far as a request is looked at."""

    def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
        self.type, self.args, self.kwargs = kind, args, kwargs


def answer(*queues: str) -> dict[str, Any]:
    """To the question, by Celery's panel, from a worker that was started a minute ago."""
    roll_call.install()
    app = Celery()
    app.amqp.queues.select(list(queues))
    controller = SimpleNamespace(startup_time=datetime.now(UTC) - timedelta(seconds=61))
    consumer = SimpleNamespace(
        pool=SimpleNamespace(num_processes=2), controller=controller, putting_aside=0, subscription=None
    )
    return dict(Panel.data["roll_call"](SimpleNamespace(app=app, consumer=consumer)))


def test_a_worker_says_what_it_has_done_and_what_it_does(taken: list[Any]) -> None:
    taken.append(
        Request("dagster_stack.execute_step", message={"run_id": RUN, "step_key": "a", "attempt": 1})
    )
    worker_state.active_requests.add(taken[0])
    worker_state.total_count.update({"dagster_stack.execute_step": 12, "other": 1})

    told = answer("heavy", "dagster")

    assert Worker.of("w@1", told) == Worker(
        "w@1",
        ("dagster", "heavy"),
        2,
        61,
        (Activity("dagster_stack.execute_step", RUN, "a"),),
        12,
        busy=1,
        held=1,
    )


@pytest.mark.usefixtures("taken")
def test_an_idle_worker_does_nothing() -> None:
    told = answer("dagster")

    assert (told["busy"], told["done"], told["doing"]) == (0, 0, [])


@pytest.mark.parametrize(
    ("packed", "run_id", "step"),
    [
        ({"pipeline_run_id": RUN, "step_keys_to_execute": ["load_january"]}, RUN, "load_january"),
        ({"run_id": RUN, "step_keys_to_execute": {"__seq__": ["a", "b"]}}, RUN, "a, b"),
        ({"run_id": RUN}, RUN, None),
        ({"run_id": 7}, None, None),
    ],
)
def test_a_step_of_dagster_celerys_own_executor_is_told_by_run_and_key(
    packed: dict[str, Any], run_id: str | None, step: str | None
) -> None:
    told = roll_call.activity("execute_plan", [], {"execute_step_args_packed": packed, "executable_dict": {}})

    assert told == {"task": "execute_plan", "run_id": run_id, "step": step}


@pytest.mark.parametrize("kwargs", [{}, {"execute_step_args_packed": "…"}, {"message": []}])
def test_a_task_without_such_arguments_is_told_by_its_name(kwargs: dict[str, Any]) -> None:
    assert roll_call.activity("other", [], kwargs) == {"task": "other", "run_id": None, "step": None}


@pytest.fixture
def rested() -> Iterator[None]:
    yield
    respite.rest(None, 0)


@pytest.mark.usefixtures("rested")
def test_a_worker_rests_once_nothing_is_on_its_way_and_until_the_time_is_over() -> None:
    respite.install()
    consumer = SimpleNamespace(subscription=SimpleNamespace(is_at_rest=False))
    assert roll_call.rests(consumer) == 0

    Panel.data["rest"](None, seconds=30)

    assert roll_call.rests(consumer) == 0
    consumer.subscription.is_at_rest = True
    assert 29 < roll_call.rests(consumer) <= 30
    Panel.data["rest"](None, seconds=0)
    assert roll_call.rests(consumer) == 0
    # And a worker of the embedded mode has no subscriptions
    assert roll_call.rests(SimpleNamespace(subscription=None)) == 0
