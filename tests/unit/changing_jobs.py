"""Ops that change whatever Dagster hands out to them, and jobs whose shared values they would so change."""

import json
from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetExecutionContext,
    Field,
    In,
    InitResourceContext,
    OpExecutionContext,
    Out,
    Permissive,
    asset,
    define_asset_job,
    job,
    op,
    resource,
)
from dagster import Definitions as Code

from dagster_stack import celery_executor

#: What each execution was given, as text, before it changed it.
given: list[str] = []


@resource(config_schema={"options": Permissive()})
def options(context: InitResourceContext) -> Any:
    return context.resource_config["options"]


@op(
    config_schema={"mode": str, "columns": [str], "more": Permissive()},
    ins={"rows": In(list, default_value=[1]), "fixed": In(dict)},
    out=Out(metadata={"plain": {"a": 1}}),
    tags={"kind": "first"},
    required_resource_keys={"options"},
)
def change(context: OpExecutionContext, rows: list[int], fixed: dict[str, int]) -> int:
    """Pops, appends and replaces in everything that it gets."""
    mappings: list[Any] = [
        context.op_config, context.run_config, context.run.run_config, context.run.tags, context.op_def.tags,
        context.job_def.metadata, context.job_def.run_tags, context.op_def.output_def_named("result").metadata,
        context.resources.options, fixed, dict(context.get_step_execution_context().step.tags),
    ]  # fmt: skip
    run_tags = {name: value for name, value in context.run.tags.items() if not name.startswith(".dagster")}
    mappings[3] = run_tags
    given.append(str([*map(dict, mappings), rows]))
    context.op_config.pop("mode")
    context.op_config["columns"].append("left by a step")
    context.op_config["more"]["left"] = "by a step"
    context.run_config["ops"].clear()  # type: ignore[attr-defined]
    context.run.tags["left"] = "by a step"  # type: ignore[index]
    context.op_def.tags["left"] = "by a step"  # type: ignore[index]
    context.job_def.metadata["left"] = "by a step"  # type: ignore[index]
    context.job_def.run_tags["left"] = "by a step"  # type: ignore[index]
    context.op_def.output_def_named("result").metadata["plain"]["left"] = "by a step"
    context.resources.options["left"] = "by a step"
    context.get_step_execution_context().step.tags["left"] = "by a step"  # type: ignore[index]
    rows.append(2)
    fixed["left"] = 1
    return 0


@job(
    executor_def=celery_executor,
    resource_defs={"options": options},
    input_values={"fixed": {"a": 1}},
    tags={"team": "data"},
    metadata={"owner": "x"},
)
def changing(fixed: dict[str, int]) -> None:
    change(fixed=fixed)
    change.alias("again")(fixed=fixed)


@asset(
    metadata={"plain": {"a": 1}},
    tags={"kind": "asset"},
    config_schema={"rows": Field(list, default_value=[1])},
)
def changed(context: AssetExecutionContext) -> None:
    spec = context.assets_def.get_asset_spec(context.asset_key)
    config = context.op_execution_context.op_config
    given.append(json.dumps([spec.metadata, spec.tags, config], default=str))
    spec.metadata["plain"]["left"] = "by a step"
    spec.tags["left"] = "by a step"
    config["rows"].append(2)


def _job() -> Any:
    code = Code(
        assets=[changed], jobs=[define_asset_job("changing_asset", [changed], executor_def=celery_executor)]
    )
    return code.resolve_job_def("changing_asset")


def changing_asset() -> Any:
    return _job()


@op(config_schema=Permissive())
def tell_order(context: OpExecutionContext) -> list[str]:
    given.append(json.dumps([context.op_config, context.run_config]))
    return list(context.op_config)


@job(executor_def=celery_executor)
def ordered() -> None:
    tell_order()


@op
def add_tag(context: OpExecutionContext) -> int:
    context.instance.add_run_tags(context.run_id, {"rows": "5"})
    return 5


@op(ins={"start": In()})
def read_tag(context: OpExecutionContext, start: Any) -> None:
    given.append(context.run.tags.get("rows", "none"))


@job(executor_def=celery_executor)
def tagging() -> None:
    read_tag(add_tag())


def results() -> Iterator[str]:
    """What was given since the last call."""
    found, given[:] = list(given), []
    yield from found
