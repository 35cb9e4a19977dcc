"""A project with something for each mutation."""

import time
from pathlib import Path

from dagster import (
    AssetExecutionContext,
    Config,
    Definitions,
    DynamicPartitionsDefinition,
    StaticPartitionsDefinition,
    asset,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
)

letters = StaticPartitionsDefinition(["a", "b"])
guests = DynamicPartitionsDefinition(name="guests")


class Waits(Config):
    until: str = ""


@op
def wait(config: Waits) -> None:
    while config.until and not Path(config.until).exists():
        time.sleep(0.1)


@job
def waiting() -> None:
    wait()


@op
def say() -> None: ...


@job(partitions_def=letters)
def spelled() -> None:
    say()


@asset(partitions_def=guests)
def greetings(context: AssetExecutionContext) -> None: ...


@asset
def orders() -> None: ...


@schedule(job=waiting, cron_schedule="0 0 1 1 *")
def yearly() -> dict[str, str]:
    return {}


@sensor(job=waiting)
def looker() -> None: ...


defs = Definitions(
    assets=[greetings, orders],
    jobs=[waiting, spelled],
    schedules=[yearly],
    sensors=[looker],
    executor=in_process_executor,
)
