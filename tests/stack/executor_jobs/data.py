"""Data and its ways between steps."""

import asyncio
from collections.abc import Iterator
from typing import Any

from dagster import (
    Config,
    DynamicOut,
    DynamicOutput,
    In,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    graph,
    job,
    op,
)


def show(context: OpExecutionContext, value: Any) -> None:
    """Metadata of a step's output, which tests read in Dagit."""
    context.add_output_metadata({"value": MetadataValue.text(str(value))})


@op(out={"small": Out(int), "large": Out(int)})
def pair() -> tuple[int, int]:
    return 1, 100


@op
async def awaited() -> int:
    await asyncio.sleep(0)
    return 1000


@op
def plus(left: int, right: int) -> int:
    return left + right


@op
def total(context: OpExecutionContext, numbers: list[int]) -> int:
    show(context, sum(numbers))
    return sum(numbers)


@op(ins={"start": In(Nothing)})
def after_all() -> None:
    pass


@job
def fan_in() -> None:
    """Several outputs, a coroutine, one op twice, a list of inputs, an order without data."""
    small, large = pair()
    after_all(total([plus(small, large), plus.alias("twice")(large, large), awaited()]))


@op(out={"left": Out(int, is_required=False), "right": Out(int, is_required=False)})
def branch() -> Iterator[Output[int]]:
    yield Output(7, "left")


@op
def follow(number: int) -> int:
    return number + 1


@job
def branching() -> None:
    """One of two ways is gone; what is on the other is skipped, and all that hangs on it alone."""
    left, right = branch()
    taken, skipped = follow.alias("taken")(left), follow.alias("skipped")(right)
    follow.alias("skipped_too")(skipped)
    total([taken, skipped])


class Count(Config):
    count: int
    #: The number whose `risky` fails unless its run repeats another; 0: none.
    fails_first: int = 0


@op(out=DynamicOut(int))
def numbers(config: Count) -> Iterator[DynamicOutput[int]]:
    for number in range(1, config.count + 1):
        yield DynamicOutput(number, mapping_key=f"n{number}")


@op
def square(number: int) -> int:
    return number * number


@op
def double(context: OpExecutionContext, number: int) -> int:
    show(context, number * 2)
    return number * 2


@job
def dynamic() -> None:
    """numbers, then squared, then increased, then added up, then doubled."""
    double(total(numbers().map(square).map(follow).collect()))


@op
def risky(context: OpExecutionContext, config: Count, number: int) -> int:
    if number == config.fails_first and context.run.parent_run_id is None:
        raise ValueError(f"number {number} fails in a first run")
    return number


@job
def repeatable() -> None:
    """A failure in the middle of a dynamic output, and one op beside it."""
    total(numbers().map(risky).collect())
    pair()


@op
def source() -> int:
    return 1


@job
def chain() -> None:
    """first, second, third, fourth: parts of it are selected."""
    follow.alias("fourth")(follow.alias("third")(follow.alias("second")(source.alias("first")())))


@graph
def add_twice(number: int) -> Any:
    return follow(follow.alias("again")(number))


@graph
def add_four(number: int) -> Any:
    return add_twice.alias("upper")(add_twice.alias("lower")(number))


@job
def nested() -> None:
    """Graphs in graphs."""
    double(add_four(source()))


JOBS = [fan_in, branching, dynamic, repeatable, chain, nested]
