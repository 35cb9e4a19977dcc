"""The executor's settings: what a job may say, and what `celery.yaml` and the environment say else."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from dagster import (
    DagsterInstance,
    job,
    multiprocess_executor,
    op,
)
from dagster._config import process_config
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.init import InitExecutorContext
from dagster_celery.executor import CELERY_CONFIG

from dagster_stack.errors import SettingsError
from dagster_stack.run.executor import CONFIG_SCHEMA, CeleryExecutor, celery_executor

YAML = """
execution:
  config:
    broker: amqp://from-the-file//
    backend: rpc://
    include: [from.the.file]
    config_source: {worker_prefetch_multiplier: 3, task_acks_late: true}
"""


@pytest.fixture
def celery_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "celery.yaml"
    file.write_text(YAML)
    monkeypatch.setenv("DAGSTER_STACK_CELERY_YAML", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", "dagster")
    # A job's broker is put where Celery looks first: the test must take it away again.
    monkeypatch.setenv("CELERY_BROKER_URL", "")
    monkeypatch.delenv("CELERY_BROKER_URL")
    return file


def made(config: Mapping[str, Any]) -> CeleryExecutor:
    """The executor for a job's `execution: config:`, validated and made as Dagster does it."""

    @op
    def nothing() -> None: ...

    @job(executor_def=celery_executor)
    def a_job() -> None:
        nothing()

    result = process_config(celery_executor.config_schema.config_type, config)
    assert result.success, result.errors
    with DagsterInstance.ephemeral() as instance:
        context = InitExecutorContext(
            job=InMemoryJob(a_job),
            executor_def=celery_executor,
            executor_config=result.value or {},
            instance=instance,
        )
        create = celery_executor.executor_creation_fn
        assert create
        made = create(context)
    assert isinstance(made, CeleryExecutor)
    return made


def broker_of(made: CeleryExecutor) -> str:
    """The host that its connections go to: Celery prefers the environment's to any other."""
    return str(made._app.connection_for_write().hostname)


def test_the_executor_has_the_stock_ones_name() -> None:
    """Dagit shows it, and a job moves over by changing an import."""
    assert celery_executor.name == "celery"


def test_a_job_may_say_whatever_the_stock_and_the_multiprocess_executor_let_it_say() -> None:
    assert set(CELERY_CONFIG) <= set(CONFIG_SCHEMA)
    multiprocess = set(cast(Any, multiprocess_executor.config_schema.config_type).fields)
    # How processes are started on one machine is nothing that can be said here.
    assert multiprocess - {"start_method"} <= set(CONFIG_SCHEMA)


def test_in_embedded_mode_steps_go_through_a_folder_and_need_no_server(
    celery_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery_yaml.write_text("")
    monkeypatch.delenv("DAGSTER_STACK_S3_BUCKET")

    app = made({})._app

    assert app.connection_for_write().transport.driver_type == "filesystem"
    assert app.conf.broker_transport_options["data_folder_out"] == str(
        tmp_path / "home" / "broker" / "messages"
    )
    app.close()


@pytest.mark.usefixtures("celery_yaml")
def test_in_the_stack_steps_are_celery_tasks_on_the_broker() -> None:
    assert made({})._app.connection_for_write().transport_cls == "amqp"


@pytest.mark.usefixtures("celery_yaml")
def test_a_job_without_config_gets_everything_from_celery_yaml() -> None:
    executor = made({})

    assert broker_of(executor) == "from-the-file"
    conf = executor._app.conf
    assert conf.result_backend == "rpc://"
    assert conf.include == ["from.the.file"]
    assert conf.worker_prefetch_multiplier == 3
    assert conf.task_acks_late is True
    assert executor.retries == RetryMode.ENABLED


def test_a_jobs_own_config_wins_field_by_field(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a broker in file and environment, of which Celery would prefer the environment's
    assert celery_yaml.exists()
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://from-the-environment//")

    # When a job names its own fields
    executor = made(
        {
            "broker": "amqp://from-the-job//",
            "backend": "redis://from-the-job",
            "include": ["from.the.job"],
            "config_source": {"worker_prefetch_multiplier": 4},
            "retries": {"disabled": {}},
            "max_concurrent": 7,
            "tag_concurrency_limits": [{"key": "a", "limit": 2}],
        }
    )

    # Then these hold, also against what Celery itself reads, and the rest is the file's
    assert broker_of(executor) == "from-the-job"
    assert os.environ["CELERY_BROKER_URL"] == "amqp://from-the-job//"
    conf = executor._app.conf
    assert conf.result_backend == "redis://from-the-job"
    assert conf.include == ["from.the.job"]
    assert conf.worker_prefetch_multiplier == 4
    assert conf.task_acks_late is True
    assert executor.retries == RetryMode.DISABLED
    assert executor._limits.at_once == 7
    assert executor._limits.by_tag == [{"key": "a", "limit": 2}]


def test_a_field_may_stand_in_the_environment(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert celery_yaml.exists()
    monkeypatch.setenv("CELERY_BROKER_URL", "x")
    monkeypatch.setenv("MY_BROKER", "amqp://mine//")

    assert broker_of(made({"broker": {"env": "MY_BROKER"}})) == "mine"


def test_without_any_broker_the_three_places_for_one_are_named(celery_yaml: Path) -> None:
    celery_yaml.write_text("execution: {config: {backend: 'rpc://'}}")

    with pytest.raises(
        SettingsError, match=r"No broker: set CELERY_BROKER_URL .* celery.yaml, or `execution: config"
    ):
        made({})


def test_a_broker_in_the_environment_is_enough(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    celery_yaml.write_text("")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://from-the-environment//")

    assert broker_of(made({})) == "from-the-environment"

    assert os.environ["CELERY_BROKER_URL"] == "amqp://from-the-environment//"


def test_a_bad_celery_yaml_fails_the_run_with_its_reason(celery_yaml: Path) -> None:
    celery_yaml.write_text("execution: {config: {brokr: x}}")

    with pytest.raises(SettingsError, match="brokr"):
        made({})
