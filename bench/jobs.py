"""The measured jobs: each work with each way to execute it, as an attribute `<work>_<variant>` of this module."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from dagster import (
    Definitions,
    ExecutorDefinition,
    GraphDefinition,
    JobDefinition,
    graph,
    in_process_executor,
    multiprocess_executor,
    op,
)
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster_aws.s3 import S3PickleIOManager, S3Resource
from dagster_celery import celery_executor as stock_celery_executor

from bench.works import WARM_UP
from dagster_stack import celery_executor, stack_resources
from dagster_stack.project import found, use
from dagster_stack.settings import Settings
from dagster_stack.worker.warm_up import code_modules, entries


@dataclass(frozen=True)
class Variant:
    """A way to execute a job: an executor, on this stack's storages or on Dagster's own."""

    executor: ExecutorDefinition
    on_own_storage: bool


#: The same work by every executor that a user could pick. Who has not this stack has not its storages either.
VARIANTS = {
    "stack": Variant(celery_executor, on_own_storage=False),
    "stock": Variant(stock_celery_executor, on_own_storage=True),
    "multiprocess": Variant(multiprocess_executor, on_own_storage=True),
    "in_process": Variant(in_process_executor, on_own_storage=True),
    "in_process_here": Variant(in_process_executor, on_own_storage=False),
}


@op
def start() -> int:
    return 0


@op
def follow(number: int) -> int:
    return number + 1


@op
def follow_10_ms(number: int) -> int:
    """About 10 ms of work for the processor."""
    until = time.process_time() + 0.01
    while time.process_time() < until:
        pass
    return number + 1


@op
def sleep_1_s() -> None:
    time.sleep(1)


@op
def sleep_half_a_s() -> None:
    """Long enough that every worker gets one of a few."""
    time.sleep(0.5)


def chain(name: str, length: int, link: Callable[..., int]) -> GraphDefinition:
    @graph(name=name)
    def steps() -> None:
        number = start()
        for index in range(1, length):
            number = link.alias(f"step_{index}")(number)  # type: ignore[attr-defined]

    return steps


def parallel(name: str, width: int, each: Callable[..., object]) -> GraphDefinition:
    @graph(name=name)
    def steps() -> None:
        for index in range(width):
            each.alias(f"step_{index}")()  # type: ignore[attr-defined]

    return steps


def users_job(name: str) -> GraphDefinition | None:
    """What a job of the workspace's code executes; None when it has no such job."""
    use(found().path)
    for module in code_modules(entries(Settings.from_environment().workspace_yaml)):
        definitions = getattr(importlib.import_module(module), "defs", None)
        if isinstance(definitions, Definitions):
            for job in definitions.jobs or ():
                if isinstance(job, JobDefinition) and job.name == name:
                    return job.graph
    return None


#: What makes a work's graph, by the name of the work.
GRAPHS: dict[str, Callable[[str], GraphDefinition | None]] = {
    WARM_UP: lambda name: parallel(name, 16, sleep_half_a_s),
    "chain_21": lambda name: chain(name, 21, follow),
    "parallel_50": lambda name: parallel(name, 50, start),
    "parallel_1000": lambda name: parallel(name, 1000, start),
    "chain_40_10ms": lambda name: chain(name, 40, follow_10_ms),
    "sleep_64": lambda name: parallel(name, 64, sleep_1_s),
    "flights": users_job,
}


def resources(on_own_storage: bool) -> dict[str, Any]:
    """This stack's resources, or the same with Dagster's own IO manager; both write to the same place."""
    ours = stack_resources()
    if not on_own_storage:
        return ours
    settings = Settings.from_environment()
    assert settings.s3, "there is no bucket: this runs on the stack only"
    own = S3PickleIOManager(
        s3_resource=S3Resource(endpoint_url=settings.s3.endpoint_url),
        s3_bucket=settings.s3.bucket,
        s3_prefix=settings.data_prefix,
    )
    return {**ours, "io_manager": own}


@cache
def job(work: str, variant: str) -> JobDefinition | None:
    """The job of a work and a variant, made when it is first asked for; None when there is no such thing."""
    if work not in GRAPHS or variant not in VARIANTS:
        return None
    steps = GRAPHS[work](work)
    if steps is None:
        return None
    chosen = VARIANTS[variant]
    return steps.to_job(
        name=f"{work}_{variant}",
        executor_def=chosen.executor,
        resource_defs=resources(chosen.on_own_storage),
    )


def __getattr__(name: str) -> JobDefinition:
    for variant in VARIANTS:
        if name.endswith(f"_{variant}") and (found := job(name.removesuffix(f"_{variant}"), variant)):
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def reconstructable_job(work: str, variant: str) -> ReconstructableJob | None:
    """The job as processes elsewhere load it; None when there is no such work here."""
    if job(work, variant) is None:
        return None
    return ReconstructableJob.for_module(__name__, f"{work}_{variant}")
