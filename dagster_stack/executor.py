"""The executor of every job: Celery in the stack, Dagster's own processes without it."""

import os
from collections.abc import Mapping
from typing import Any

from dagster import (
    ExecutorDefinition,
    Field,
    InitExecutorContext,
    Noneable,
    StringSource,
    executor,
    multiple_process_executor_requirements,
    multiprocess_executor,
)
from dagster._core.execution.retries import RetryMode
from dagster_celery.executor import CELERY_CONFIG, CeleryExecutor

from dagster_stack.errors import SettingsError
from dagster_stack.settings import BROKER_VARIABLE, CeleryConfig, Settings

#: The stock executor's schema without its default backend: an unset field comes from `celery.yaml`.
CONFIG_SCHEMA = {
    **CELERY_CONFIG,
    "backend": Field(
        Noneable(StringSource),
        is_required=False,
        description="The URL of the Celery result backend. Default: what celery.yaml says.",
    ),
}


@executor(name="celery", config_schema=CONFIG_SCHEMA, requirements=multiple_process_executor_requirements())
def stack_celery_executor(context: InitExecutorContext) -> CeleryExecutor:
    """dagster-celery's executor; what a job's config leaves open comes from `celery.yaml`."""
    defaults = CeleryConfig.load(Settings.from_environment().celery_yaml)
    config: Mapping[str, Any] = context.executor_config
    if not (config.get("broker") or defaults.broker or os.environ.get(BROKER_VARIABLE)):
        raise SettingsError(
            f"No broker: set {BROKER_VARIABLE} (compose.yaml does), `broker` in celery.yaml,"
            " or `execution: config: broker:` in the job's config."
        )
    if config.get("broker"):
        # Celery lets this variable win over every configuration; a job's own broker must win over it.
        # It is safe to set: a run has this process to itself.
        os.environ[BROKER_VARIABLE] = config["broker"]
    return CeleryExecutor(
        broker=config.get("broker") or defaults.broker,
        backend=config.get("backend") or defaults.backend,
        include=config.get("include") or defaults.include,
        config_source={**defaults.config_source, **(config.get("config_source") or {})},
        retries=RetryMode.from_config(config["retries"]),
    )


def select_executor(settings: Settings) -> ExecutorDefinition:
    """Celery where there is a broker; in embedded mode one process a step on this machine."""
    return multiprocess_executor if settings.embedded else stack_celery_executor


celery_executor = select_executor(Settings.from_environment())
