"""Which executor a job gets, and with which settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, job, multiprocess_executor, op
from dagster._config import process_config
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.init import InitExecutorContext
from dagster_celery.executor import CeleryExecutor

from dagster_stack.errors import SettingsError
from dagster_stack.executor import select_executor, stack_celery_executor
from dagster_stack.settings import S3Settings, Settings

YAML = """
execution:
  config:
    broker: amqp://from-the-file//
    backend: rpc://
    include: [from.the.file]
    config_source: {worker_prefetch_multiplier: 1, task_acks_late: true}
"""


@pytest.fixture
def celery_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "celery.yaml"
    file.write_text(YAML)
    monkeypatch.setenv("DAGSTER_STACK_CELERY_YAML", str(file))
    return file


def made(config: Mapping[str, Any]) -> CeleryExecutor:
    """The executor for a job's `execution: config:`, validated and made as Dagster does it."""

    @op
    def nothing() -> None: ...

    @job(executor_def=stack_celery_executor)
    def a_job() -> None:
        nothing()

    result = process_config(stack_celery_executor.config_schema.config_type, config)
    assert result.success, result.errors
    with DagsterInstance.ephemeral() as instance:
        context = InitExecutorContext(
            job=InMemoryJob(a_job),
            executor_def=stack_celery_executor,
            executor_config=result.value or {},
            instance=instance,
        )
        create = stack_celery_executor.executor_creation_fn
        assert create
        executor = create(context)
    assert isinstance(executor, CeleryExecutor)
    return executor


def settings(s3: S3Settings | None, tmp_path: Path) -> Settings:
    return Settings(s3=s3, store_folder=tmp_path, celery_yaml=tmp_path)


def test_in_embedded_mode_steps_are_processes_of_this_machine(tmp_path: Path) -> None:
    assert select_executor(settings(None, tmp_path)) is multiprocess_executor


def test_in_the_stack_steps_are_celery_tasks(tmp_path: Path) -> None:
    chosen = select_executor(settings(S3Settings("b", None, None), tmp_path))

    assert chosen is stack_celery_executor
    assert chosen.name == "celery"


@pytest.mark.usefixtures("celery_yaml")
def test_a_job_without_config_gets_everything_from_celery_yaml() -> None:
    executor = made({})

    assert executor.broker == "amqp://from-the-file//"
    assert executor.backend == "rpc://"
    assert executor.include == ["from.the.file"]
    assert vars(executor.config_source)["worker_prefetch_multiplier"] == 1
    assert vars(executor.config_source)["task_acks_late"] is True
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
        }
    )

    # Then these hold, also against what Celery itself reads, and the rest is the file's
    assert executor.broker == "amqp://from-the-job//"
    assert os.environ["CELERY_BROKER_URL"] == "amqp://from-the-job//"
    assert executor.backend == "redis://from-the-job"
    assert executor.include == ["from.the.job"]
    assert vars(executor.config_source)["worker_prefetch_multiplier"] == 4
    assert vars(executor.config_source)["task_acks_late"] is True
    assert executor.retries == RetryMode.DISABLED


def test_a_field_may_stand_in_the_environment(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert celery_yaml.exists()
    monkeypatch.setenv("CELERY_BROKER_URL", "x")
    monkeypatch.setenv("MY_BROKER", "amqp://mine//")

    assert made({"broker": {"env": "MY_BROKER"}}).broker == "amqp://mine//"


def test_without_any_broker_the_three_places_for_one_are_named(celery_yaml: Path) -> None:
    celery_yaml.write_text("execution: {config: {backend: 'rpc://'}}")

    with pytest.raises(
        SettingsError, match=r"No broker: set CELERY_BROKER_URL .* celery.yaml, or `execution: config"
    ):
        made({})


def test_a_broker_in_the_environment_is_enough(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    celery_yaml.write_text("")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://from-the-environment//")

    made({})

    assert os.environ["CELERY_BROKER_URL"] == "amqp://from-the-environment//"


def test_a_bad_celery_yaml_fails_the_run_with_its_reason(celery_yaml: Path) -> None:
    celery_yaml.write_text("execution: {config: {brokr: x}}")

    with pytest.raises(SettingsError, match="brokr"):
        made({})
