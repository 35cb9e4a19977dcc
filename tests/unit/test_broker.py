"""What the broker tells: queue depths from RabbitMQ 4's management API, workers from Celery 5's answers."""

import io
import json
from typing import Any

import pytest

from dagster_stack.client.workers import show_workers, table
from dagster_stack.errors import BrokerUnreachable, ExitCode, UsageError
from dagster_stack.messaging.management import BrokerApi, QueueDepth, work_queues
from dagster_stack.messaging.workers import Activity, Worker

RUN = "1f0c8e0a-7a4e-4f4c-9b5e-4a1d2c3b4e5f"


def queue(name: str, **more: Any) -> dict[str, Any]:
    entry = {"name": name, "durable": True, "auto_delete": False, "exclusive": False}
    return {**entry, "messages_ready": 0, "messages_unacknowledged": 0, "consumers": 1, **more}


def test_work_queues_are_named_with_their_depth_in_order() -> None:
    answer = [queue("heavy"), queue("dagster", messages_ready=12, messages_unacknowledged=4, consumers=2)]

    assert work_queues(answer) == (QueueDepth("dagster", 12, 4, 2), QueueDepth("heavy", 0, 0, 1))


def test_celerys_own_queues_are_no_backlog() -> None:
    answer = [
        queue("celery@host.celery.pidbox", durable=False, auto_delete=True),
        queue("celeryev.1b", auto_delete=True),
        queue("8f6c-reply", exclusive=True),
        queue("dagster"),
    ]

    assert [depth.name for depth in work_queues(answer)] == ["dagster"]


def test_a_queue_that_rabbitmq_has_not_yet_counted_is_empty() -> None:
    answer = [{"name": "new", "durable": True, "auto_delete": False, "exclusive": False}]

    assert work_queues(answer) == (QueueDepth("new", 0, 0, 0),)


def test_without_a_management_address_there_is_no_backlog() -> None:
    assert BrokerApi.from_environment({}) is None
    assert BrokerApi.from_environment({"DAGSTER_STACK_BROKER_API_URL": ""}) is None


def test_an_alarm_of_any_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"mem_alarm": False, "disk_free_alarm": False}, {"mem_alarm": False, "disk_free_alarm": True}]
    api = BrokerApi("http://broker", "monitor", "secret")
    monkeypatch.setattr(api, "_get", lambda path, _: nodes if path == "nodes" else [])
    assert api.read_alarms() == {"memory": False, "disk": True}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The workers that `ask_workers` finds; a real broker is asked in the stack's tests."""
    workers: list[Worker] = []
    monkeypatch.setattr("dagster_stack.client.workers.ask_workers", lambda broker: workers)
    return workers


BROKER = {"CELERY_BROKER_URL": "amqp://u:p@broker/v"}


def test_workers_are_shown_as_a_table_without_control_characters_in_a_pipe(found: list[Worker]) -> None:
    found.append(
        Worker(
            "celery@a",
            ("dagster",),
            2,
            75,
            (Activity("execute_plan", RUN, "a"), Activity("x", None, None)),
            3,
        )
    )
    out = io.StringIO()

    code = show_workers(out, as_json=False, environment=BROKER)

    assert code is ExitCode.SUCCESS
    header, first, second = out.getvalue().splitlines()
    assert header.split() == ["WORKER", "QUEUES", "PROCESSES", "UPTIME", "DONE", "DOING"]
    assert first.split() == ["celery@a", "dagster", "2", "1", "min", "15", "s", "3", "1f0c8e0a", "a"]
    assert second.split() == ["x"]
    assert "\x1b" not in out.getvalue()


def test_workers_of_several_hosts_are_shown_with_theirs(found: list[Worker]) -> None:
    found += [
        Worker("celery@a", ("dagster",), 1, 1, (), 0),
        Worker("celery@b", ("dagster",), 1, 1, (), 0, host="box2"),
    ]
    out = io.StringIO()

    show_workers(out, as_json=False, environment=BROKER)

    header, *rows = out.getvalue().splitlines()
    assert header.split()[:3] == ["WORKER", "HOST", "QUEUES"]
    assert [row.split()[1] for row in rows] == ["first", "box2"]


def test_a_worker_that_says_nothing_of_itself_is_shown_all_the_same() -> None:
    worker = Worker.of("celery@a", {"error": "KeyError: 'roll_call'"})

    assert worker == Worker("celery@a", ("unknown",), None, None, (), 0)
    assert table([worker]).row_count == 1


def test_workers_as_json_hold_whole_run_ids(found: list[Worker]) -> None:
    found.append(Worker("celery@a", ("dagster",), 2, 75, (Activity("execute_plan", RUN, "a"),), 3, "abc", 1))
    out = io.StringIO()

    show_workers(out, as_json=True, environment=BROKER)

    assert json.loads(out.getvalue()) == [
        {
            "name": "celery@a",
            "queues": ["dagster"],
            "processes": 2,
            "uptime": 75,
            "doing": [{"task": "execute_plan", "run_id": RUN, "step": "a"}],
            "done": 3,
            "code": "abc",
            "busy": 1,
            "held": None,
            "rests": 0,
            "host": "",
        }
    ]


@pytest.mark.usefixtures("found")
def test_no_worker_alive_is_a_failure_with_a_cure() -> None:
    out = io.StringIO()

    code = show_workers(out, as_json=False, environment=BROKER)

    assert code is ExitCode.FAILED
    assert "docker compose up -d" in out.getvalue()


def test_workers_without_a_broker_say_which_variable_is_missing() -> None:
    with pytest.raises(UsageError, match="CELERY_BROKER_URL is not set"):
        show_workers(io.StringIO(), as_json=False, environment={})


def test_an_unreachable_broker_is_named_without_its_password() -> None:
    with pytest.raises(BrokerUnreachable) as caught:
        show_workers(io.StringIO(), False, {"CELERY_BROKER_URL": "amqp://u:secret@127.0.0.1:1/v"})

    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_broker_address_of_no_known_kind_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="amqp://"):
        show_workers(io.StringIO(), False, {"CELERY_BROKER_URL": "nothing://broker"})
