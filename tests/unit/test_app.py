"""The Celery app as a worker gets it, looked at in a process of its own: the module reads the environment once."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.console import ROOT
from tests.unit.fresh_process import look

LOOK = """
import json, sys
from celery import signals
from dagster_stack.app import app
from dagster_stack.services.health import Watchdog
print(json.dumps({
    "conf": {key: app.conf[key] for key in json.loads(sys.argv[1])},
    "broker": app.conf.broker_url,
    "queues": {name: queue.queue_arguments for name, queue in app.amqp.queues.items()},
    "chosen": {name: [app.amqp.queues.select_add(name).queue_arguments, app.amqp.queues[name].durable]
               for name in ("dagster", "heavy")},
    "tasks": sorted(name for name in app.tasks if not name.startswith("celery.")),
    "watchdog": Watchdog in app.steps["worker"],
    "own": [app.conf.worker_consumer, app.Task.Request],
    "at start": [ref.__name__ for name in ("celeryd_after_setup", "worker_process_init", "worker_shutting_down")
                 for _, ref in getattr(signals, name).receivers if ref.__module__.startswith("dagster_stack")],
}, default=str))
"""


def settings(*options: str, **environment: str) -> Any:
    """The app's, of these options and beside them."""
    return look(LOOK, json.dumps(options), **environment)


@pytest.fixture(scope="module")
def app() -> Any:
    return settings(*committed(), CELERY_BROKER_URL="amqp://user:secret@rabbitmq:5672/dagster")


def committed() -> dict[str, Any]:
    block = yaml.safe_load((ROOT / "celery.yaml").read_text())["execution"]["config"]
    return dict(block["config_source"])


def test_every_setting_of_the_committed_file_is_the_apps(app: Any) -> None:
    assert app["conf"] == committed()


def test_the_promises_rest_on_these_settings(app: Any) -> None:
    """Written out a second time on purpose: a change of celery.yaml must be meant."""
    conf = app["conf"]
    assert conf["accept_content"] == ["json"]
    assert conf["task_serializer"] == conf["result_serializer"] == "json"
    assert conf["task_acks_late"] is True
    assert conf["task_reject_on_worker_lost"] is True
    assert conf["worker_prefetch_multiplier"] == 1
    assert conf["task_default_delivery_mode"] == 2
    assert conf["broker_transport_options"] == {"confirm_publish": True}
    assert conf["broker_connection_max_retries"] is None
    # What user code leaks ends with its process.
    assert conf["worker_max_tasks_per_child"] == 1000
    assert conf["worker_max_memory_per_child"] == 1_500_000


def test_the_broker_is_the_environments(app: Any) -> None:
    assert app["broker"] == "amqp://user:secret@rabbitmq:5672/dagster"


def test_each_queue_has_the_ten_priorities_and_is_durable(app: Any) -> None:
    assert app["chosen"]["dagster"] == [{"x-max-priority": 10}, True]
    assert app["chosen"]["heavy"] == [{"x-max-priority": 10}, True]


def test_a_worker_knows_its_own_and_the_stock_tasks_and_watches_itself(app: Any) -> None:
    assert {"dagster_stack.execute_step", "execute_plan", "execute_job", "resume_job"} <= set(app["tasks"])
    assert app["watchdog"] is True


def test_a_worker_has_its_own_ways_with_messages(app: Any) -> None:
    """It puts aside what it can't use, and tells what its processes die of."""
    assert app["own"] == ["dagster_stack.worker.consumer:Consumer", "dagster_stack.worker.request:Request"]


def test_a_worker_calls_tasks_back_in_its_own_way() -> None:
    revoke = look(
        """
import json
import dagster_stack.app
from celery.worker.control import Panel
print(json.dumps(Panel.data["revoke"].__module__))
"""
    )

    assert revoke == "dagster_stack.worker.revocation"


def test_a_worker_warms_up_its_processes_and_bounds_its_stop(app: Any) -> None:
    assert app["at start"] == ["lift_limits", "share", "warm_up", "start_drain"]


def test_without_a_bucket_or_a_broker_a_worker_listens_to_a_folder(tmp_path: Path) -> None:
    """The embedded mode: a worker of `make dev`, whose messages need no server."""
    app = settings("worker_prefetch_multiplier", "broker_transport_options", DAGSTER_HOME=str(tmp_path))

    assert app["broker"] == "filesystem://"
    assert app["conf"]["broker_transport_options"]["data_folder_in"] == str(tmp_path / "broker" / "messages")


def test_a_pickled_message_is_refused_and_a_json_one_taken() -> None:
    # Given messages as a stranger on the broker could send them, and a consumer as Celery makes it
    seen = look(
        """
import json, pickle
from kombu.exceptions import ContentDisallowed
from kombu.message import Message
from dagster_stack.app import app

accept = app.amqp.TaskConsumer(app.connection_for_read("memory://").channel()).accept
def verdict(content_type, body, encoding):
    try:
        return Message(body=body, content_type=content_type, content_encoding=encoding, accept=accept).decode()
    except ContentDisallowed as refusal:
        return f"refused: {refusal}"
print(json.dumps({
    "pickle": verdict("application/x-python-serialize", pickle.dumps("boom"), "binary"),
    "yaml": verdict("application/x-yaml", "boom", "utf-8"),
    "json": verdict("application/json", '"fine"', "utf-8"),
}))
"""
    )

    # Then only JSON comes through
    assert seen["json"] == "fine"
    assert seen["pickle"].startswith("refused")
    assert seen["yaml"].startswith("refused")


def test_what_dagster_celery_was_started_with_wins_over_the_committed_file(tmp_path: Path) -> None:
    # Given what `dagster-celery worker start -y other.yaml` writes and puts on the path
    (tmp_path / "dagster_celery_config.py").write_text(
        "broker_url = 'amqp://other//'\naccept_content = ['json']\nworker_prefetch_multiplier = 7\n"
    )

    app = settings("worker_prefetch_multiplier", "accept_content", PYTHONPATH=str(tmp_path))

    assert app["conf"] == {"worker_prefetch_multiplier": 7, "accept_content": ["json"]}
    assert app["broker"] == "amqp://other//"
    assert app["chosen"]["heavy"] == [{"x-max-priority": 10}, True]


def test_another_celery_yaml_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(
        "execution: {config: {broker: 'amqp://named//', config_source: {worker_prefetch_multiplier: 3}}}"
    )

    app = settings("worker_prefetch_multiplier", DAGSTER_STACK_CELERY_YAML=str(file))

    assert app["conf"] == {"worker_prefetch_multiplier": 3}
    assert app["broker"] == "amqp://named//"
