"""Jobs whose steps say what a log, a database or a page may not expect."""

from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetMaterialization,
    AssetObservation,
    Definitions,
    Failure,
    JobDefinition,
    MaterializeResult,
    MetadataValue,
    OpExecutionContext,
    Output,
    TableRecord,
    asset,
    define_asset_job,
    job,
    op,
)

from dagster_stack import celery_executor

#: What no encoding takes, what Postgres does not know, and what is in order.
ODD = "file\udcff\0😀"
SHOWN = "file\\udcff␀😀"


class Unspeakable(Exception):
    """Neither its text nor its representation can be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("can't be pickled")
        self.lock = __import__("threading").Lock()

    def __reduce__(self) -> Any:
        raise TypeError("can't pickle")


@op
def talks(context: OpExecutionContext) -> Iterator[Any]:
    context.log.info(ODD)
    context.add_output_metadata({f"output {ODD}": ODD})
    context.instance.add_run_tags(context.run_id, {f"tag {ODD}": ODD})
    metadata: dict[str, Any] = {
        ODD: ODD,
        "json": {ODD: [ODD, float("nan")]},
        "path": MetadataValue.path(ODD),
        "large": 10**30,
    }
    yield AssetMaterialization(["odd", "materialized"], description=ODD, metadata=metadata)
    yield AssetObservation(["odd", "observed"], description=ODD, metadata=metadata)
    yield Output(None)


@op
def says_much(context: OpExecutionContext) -> None:
    context.log.info("m" * 10_000_000)
    context.add_output_metadata({"text": "t" * 10_000_000, "json": {"numbers": list(range(1_000_000))}})


@op(config_schema=str)
def counts(context: OpExecutionContext) -> Iterator[Any]:
    """A number of more digits than Python writes, in what is stored in a batch, or by itself."""
    context.log.info("before")
    number: dict[str, Any] = {"n": 10**5000}
    if context.op_config == "asset":
        yield AssetMaterialization("counted", metadata=number)
    if context.op_config == "table":
        yield AssetMaterialization("counted", metadata={"n": MetadataValue.table([TableRecord(number)])})
    yield Output(None, metadata=number if context.op_config == "output" else {})


@op(config_schema=str)
def fails(context: OpExecutionContext) -> None:
    kind = context.op_config
    if kind == "odd":
        raise ValueError(ODD)
    if kind == "failure":
        raise Failure(ODD, metadata={ODD: ODD})
    if kind == "long":
        raise ValueError("e" * 100_000_000)
    if kind == "unspeakable":
        raise Unspeakable
    if kind == "unpicklable":
        raise Unpicklable
    if kind == "group":
        raise ExceptionGroup(
            "several", [ValueError("the first"), ExceptionGroup("more", [OSError("the second")])]
        )
    if kind == "class":
        raise type("X" * 1_000_000, (Exception,), {})("its class has a long name")
    if kind == "odd class":
        raise type(ODD.replace("\0", ""), (Exception,), {})("its class has an odd name")
    if kind == "deep":
        recurse()
    raise chain(1000)


def recurse() -> None:
    recurse()


def chain(length: int) -> Exception:
    error = ValueError("cause 0")
    for number in range(1, length):
        effect = ValueError(f"cause {number}")
        effect.__cause__, error = error, effect
    return error


FAILURES = (
    "odd", "failure", "long", "unspeakable", "unpicklable", "group", "class", "odd class", "deep", "chain",
)  # fmt: skip


@asset(check_specs=[AssetCheckSpec("odd", asset="odd_asset")])
def odd_asset():  # type: ignore[no-untyped-def]
    metadata: dict[str, Any] = {ODD: ODD, "json": {"nan": float("nan")}}
    check = AssetCheckResult(passed=True, check_name="odd", description=ODD, metadata=metadata)
    return MaterializeResult(metadata=metadata, check_results=[check], tags={})


@job(executor_def=celery_executor)
def talking() -> None:
    talks()


@job(executor_def=celery_executor)
def saying_much() -> None:
    says_much()


@job(executor_def=celery_executor)
def counting() -> None:
    counts()


@job(executor_def=celery_executor)
def failing() -> None:
    fails()


def odd_assets() -> JobDefinition:
    materialize = define_asset_job("odd_assets", executor_def=celery_executor)
    return Definitions(assets=[odd_asset], jobs=[materialize]).resolve_job_def("odd_assets")
