"""Jobs for the tests of the executor and its workers: each step is small, and every shape of a plan is there."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from dagster import (
    DynamicOut,
    DynamicOutput,
    Failure,
    GraphOut,
    HookContext,
    JobDefinition,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    RetryRequested,
    graph,
    job,
    op,
    resource,
    success_hook,
)

from dagster_stack import celery_executor
from tests.unit.database_errors import ask_warehouse

#: What the hook of `hooked` was called with.
hooked_steps: list[str] = []


@op
def one() -> int:
    return 1


@op
def add_one(number: int) -> int:
    return number + 1


@op
def total(numbers: list[int]) -> int:
    return sum(numbers)


@op
def fail() -> int:
    raise ValueError("this step fails")


@job(executor_def=celery_executor)
def linear() -> None:
    add_one.alias("third")(add_one.alias("second")(one()))


@job(executor_def=celery_executor)
def with_a_failure() -> None:
    """Two branches: what depends on the failed step must not run, and everything else must."""
    add_one.alias("after_that")(add_one.alias("after_failure")(fail()))
    add_one.alias("beside")(one())


@job(executor_def=celery_executor)
def fan_in() -> None:
    total([one.alias("first")(), one.alias("second")(), one.alias("third")()])


@op(out=DynamicOut(int))
def numbers() -> Iterator[DynamicOutput[int]]:
    for number in range(3):
        yield DynamicOutput(number, mapping_key=f"n{number}")


@op(out=DynamicOut(int))
def no_numbers() -> Iterator[DynamicOutput[int]]:
    yield from ()


@job(executor_def=celery_executor)
def dynamic() -> None:
    """Mapped twice, collected, and used further."""
    mapped = numbers().map(lambda number: add_one.alias("twice")(add_one(number)))
    add_one.alias("after_total")(total(mapped.collect()))


@job(executor_def=celery_executor)
def dynamic_collected_at_once() -> None:
    total(numbers().collect())


@job(executor_def=celery_executor)
def dynamic_without_any() -> None:
    add_one.alias("after_total")(total(no_numbers().map(add_one).collect()))


@graph
def inner(number: int) -> Any:
    return add_one.alias("inside")(number)


@graph(out={"number": GraphOut()})
def outer(number: int) -> Any:
    return {"number": inner(add_one.alias("before")(number))}


@job(executor_def=celery_executor)
def nested() -> None:
    add_one.alias("last")(outer(one()))


@op(out={"left": Out(int, is_required=False), "right": Out(int, is_required=False)})
def either() -> Iterator[Output[int]]:
    yield Output(1, "left")


@job(executor_def=celery_executor)
def branching() -> None:
    left, right = either()
    add_one.alias("on_the_left")(left)
    add_one.alias("further_right")(add_one.alias("on_the_right")(right))


@op(retry_policy=RetryPolicy(max_retries=2))
def stubborn(context: OpExecutionContext) -> int:
    if context.retry_number < 2:
        raise ValueError(f"attempt {context.retry_number + 1} fails")
    return 2


@job(executor_def=celery_executor)
def retrying() -> None:
    add_one(stubborn())


@op
def later(context: OpExecutionContext) -> None:
    if context.retry_number == 0:
        raise RetryRequested(max_retries=1, seconds_to_wait=60)


@job(executor_def=celery_executor)
def retrying_later() -> None:
    later()


@resource
def broken_resource() -> NoReturn:
    raise ValueError("this resource does not start")


@op(required_resource_keys={"broken"})
def needs_resource() -> int:
    return 1


@job(executor_def=celery_executor, resource_defs={"broken": broken_resource})
def with_a_broken_resource() -> None:
    add_one.alias("after_failure")(needs_resource())
    add_one.alias("beside")(one())


@op
def asks() -> int:
    ask_warehouse()


@job(executor_def=celery_executor)
def with_a_warehouse() -> None:
    asks()


@op(required_resource_keys={"broken"}, retry_policy=RetryPolicy(max_retries=1))
def needs_resource_twice() -> int:
    return 1


@job(executor_def=celery_executor, resource_defs={"broken": broken_resource})
def with_a_broken_resource_tried_again() -> None:
    needs_resource_twice()


@op(tags={"dagster-celery/queue": "heavy", "dagster-celery/priority": "9"})
def heavy() -> int:
    return 1


@op(tags={"dagster-celery/priority": "1"})
def unimportant() -> int:
    return 1


@job(executor_def=celery_executor, tags={"dagster-celery/run_priority": "1"})
def prioritized() -> None:
    unimportant()
    one()
    heavy()


@op(tags={"dagster/priority": "3"})
def foreign() -> None: ...


@op(tags={"dagster/priority": "3", "dagster-celery/priority": "3"})
def both_priorities() -> None: ...


@job(executor_def=celery_executor)
def with_foreign_priority() -> None:
    foreign()
    both_priorities()


@job(executor_def=celery_executor)
def wide() -> None:
    for number in range(12):
        one.alias(f"step_{number:02d}")()


@job(executor_def=celery_executor)
def alone() -> None:
    one()


@op
def flaky(number: int) -> int:
    """Fails as long as the variable is set: people repair their data between two runs."""
    if os.environ.get("DATA_IS_BROKEN"):
        raise ValueError("the data is broken")
    return number + 1


@job(executor_def=celery_executor)
def repairable() -> None:
    add_one.alias("last")(flaky(one()))


@op(pool="database")
def pooled() -> int:
    return 1


@job(executor_def=celery_executor)
def with_a_pool() -> None:
    for number in range(3):
        pooled.alias(f"pooled_{number}")()


@op(tags={"database": "small"})
def limited() -> int:
    return 1


@job(executor_def=celery_executor)
def with_a_limit() -> None:
    for number in range(3):
        limited.alias(f"limited_{number}")()
    one()


@job(executor_def=celery_executor)
def two_chains() -> None:
    """A short chain beside a long one."""
    add_one.alias("after_first")(one.alias("first")())
    number = one.alias("step_0")()
    for index in range(1, 15):
        number = add_one.alias(f"step_{index}")(number)


@op(config_schema={"number": int})
def configured(context: OpExecutionContext) -> int:
    return int(context.op_config["number"])


@job(executor_def=celery_executor)
def with_config() -> None:
    add_one(configured())


@success_hook
def remember(context: HookContext) -> None:
    assert context.op
    hooked_steps.append(context.op.name)


@job(executor_def=celery_executor, hooks={remember})
def hooked() -> None:
    one()


@op
def disturb() -> None:
    """Leave the process as badly behaved user code does."""
    os.environ["LEFT_BY_A_STEP"] = "1"
    os.chdir("/")
    logging.disable()


@job(executor_def=celery_executor)
def disturbing() -> None:
    disturb()


@op
def leave_a_thread() -> None:
    """Leave a thread that works on for a second."""
    threading.Thread(target=time.sleep, args=(1,), name="poller").start()


@job(executor_def=celery_executor)
def leaving_a_thread() -> None:
    leave_a_thread()


@op
def interrupted() -> None:
    raise KeyboardInterrupt


@job(executor_def=celery_executor)
def with_an_interrupt() -> None:
    interrupted()


@op
def refuses() -> None:
    raise Failure("no, thanks", allow_retries=False)


@job(executor_def=celery_executor)
def refusing() -> None:
    refuses()


def chain(length: int) -> JobDefinition:
    """A job of so many steps, one after the other."""

    @job(name=f"chain_{length}", executor_def=celery_executor)
    def made() -> None:
        number = one()
        for index in range(1, length):
            number = add_one.alias(f"step_{index}")(number)

    return made


def chain_10() -> JobDefinition:
    return chain(10)


def chain_100() -> JobDefinition:
    return chain(100)
