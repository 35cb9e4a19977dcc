"""Jobs whose ops do what a test tells them, another thing in each execution: the process is lost, somebody cancels."""

from collections.abc import Callable, Iterator
from typing import Any

from dagster import (
    AssetMaterialization,
    DynamicOut,
    DynamicOutput,
    HookContext,
    InitResourceContext,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    in_process_executor,
    job,
    op,
    resource,
    success_hook,
)

from dagster_stack import celery_executor
from tests.unit.step_jobs import add_one, one, total

#: What happens in the next executions of an eventful op, by its name; nothing in those after that.
happenings: dict[str, list[Callable[[Any], None]]] = {}
#: The mapping keys that the next executions of `keys` yield, each with what happens then.
yields: list[tuple[str, Callable[[OpExecutionContext], None] | None]] = []


def happen(context: OpExecutionContext) -> None:
    pending = happenings.get(context.op_handle.name)
    if pending:
        pending.pop(0)(context)


@op
def eventful(context: OpExecutionContext) -> int:
    happen(context)
    return 1


@job(executor_def=celery_executor)
def with_an_event() -> None:
    add_one(eventful())


@op(name="eventful", retry_policy=RetryPolicy(max_retries=2))
def eventful_with_a_policy(context: OpExecutionContext) -> int:
    happen(context)
    return 1


@job(executor_def=celery_executor)
def with_an_event_and_a_policy() -> None:
    add_one(eventful_with_a_policy())


@resource
def slow_resource(context: InitResourceContext) -> None:
    pending = happenings.get("resource")
    if pending:
        pending.pop(0)(context)


@op(required_resource_keys={"slow"})
def needs_resource() -> None: ...


@job(executor_def=celery_executor, resource_defs={"slow": slow_resource})
def with_a_slow_resource() -> None:
    needs_resource()


@op(tags={"dagster-stack/timeout": "soon"})
def soon() -> None: ...


@job(executor_def=celery_executor, tags={"dagster-stack/timeout": "-5"})
def with_wrong_timeouts() -> None:
    soon()


@success_hook(name="hook")
def hook(context: HookContext) -> None:
    pending = happenings.get("hook")
    if pending:
        pending.pop(0)(context)


@job(executor_def=celery_executor)
def with_a_hook() -> None:
    eventful.with_hooks({hook})()


@op(tags={"dagster-stack/redeliver": "false"})
def once(context: OpExecutionContext) -> int:
    happen(context)
    return 1


@job(executor_def=celery_executor)
def executed_once() -> None:
    once()


@op(out=DynamicOut(int))
def keys(context: OpExecutionContext) -> Iterator[DynamicOutput[int]]:
    found, then = yields.pop(0)
    for key in found:
        yield DynamicOutput(ord(key), mapping_key=key)
    if then:
        then(context)


@job(executor_def=celery_executor)
def with_changing_keys() -> None:
    """What is mapped depends on what is there when the op looks: another execution may find other files."""
    total(keys().map(add_one).collect())


@op
def last(context: OpExecutionContext, found: list[int]) -> list[int]:
    happen(context)
    return sorted(found)


@job(executor_def=celery_executor)
def with_changing_keys_and_a_failure() -> None:
    last(keys().map(add_one).collect())


@op
def made(context: OpExecutionContext) -> None:
    context.log_event(AssetMaterialization("made", metadata={"run": context.run_id}))
    happen(context)


@job(executor_def=celery_executor)
def with_an_asset() -> None:
    made()


@op(out={"first": Out(int), "second": Out(int)})
def two_outputs(context: OpExecutionContext) -> Iterator[Output[int]]:
    yield Output(1, "first")
    happen(context)
    yield Output(2, "second")


@job(executor_def=celery_executor)
def with_two_outputs() -> None:
    first, second = two_outputs()
    add_one.alias("after_first")(first)
    add_one.alias("after_second")(second)


@job(executor_def=celery_executor)
def six_chains() -> None:
    for index in range(6):
        add_one.alias(f"second_{index}")(one.alias(f"first_{index}")())


@job(executor_def=in_process_executor)
def of_another_executor() -> None:
    eventful()
