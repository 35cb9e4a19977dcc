"""Time, queues, priorities, limits."""

import time
from collections.abc import Iterator
from typing import Any

from dagster import Config, DynamicOut, DynamicOutput, In, Nothing, OpDefinition, Out, graph, job, op

QUEUE, PRIORITY = "dagster-celery/queue", "dagster-celery/priority"
#: Queues that no service of the stack consumes: tests start workers for them.
OWN, OTHER = "test-own", "test-other"


class Nap(Config):
    seconds: float = 0.0


def napping_op(name: str, queue: str = "dagster", priority: int = 5, **options: Any) -> OpDefinition:
    """An op that keeps a worker of a queue busy."""
    tags = {QUEUE: queue, PRIORITY: str(priority), **options.pop("tags", {})}

    @op(name=name, tags=tags, ins={"start": In(Nothing)}, out=Out(Nothing), **options)
    def nap(config: Nap) -> None:
        time.sleep(config.seconds)

    return nap


class Nappers(Config):
    count: int
    seconds: float = 0.0


def wide_ops(name: str, queue: str) -> tuple[OpDefinition, OpDefinition]:
    """An op that says how many steps follow, and the op of these; all on one queue."""

    @op(name=f"{name}_beds", tags={QUEUE: queue}, out=DynamicOut(float))
    def beds(config: Nappers) -> Iterator[DynamicOutput[float]]:
        for number in range(config.count):
            yield DynamicOutput(config.seconds, mapping_key=str(number))

    @op(name=f"{name}_nap", tags={QUEUE: queue}, out=Out(Nothing))
    def nap(seconds: float) -> None:
        time.sleep(seconds)

    return beds, nap


wide_beds, wide_nap = wide_ops("wide", "dagster")
own_beds, own_nap = wide_ops("own", OWN)


@job
def wide() -> None:
    """As many steps at once as the config says."""
    wide_beds().map(wide_nap)


@job
def wide_own() -> None:
    """The same on a queue of the test's own."""
    own_beds().map(own_nap)


@job
def line() -> None:
    """Three steps, one after the other."""
    napping_op("last")(napping_op("middle")(napping_op("first")()))


@job
def waiting_line() -> None:
    """Three steps that wait for the one worker of `heavy` and go by their priority."""
    for name, priority in (("opener", 10), ("victim", 5), ("closer", 1)):
        napping_op(name, "heavy", priority)()


@job
def alone() -> None:
    """One step for the one worker of `heavy`."""
    napping_op("alone_heavy", "heavy")()


@job
def single() -> None:
    napping_op("single_nap")()


@job
def own_long() -> None:
    napping_op("long", OWN)()


@job
def shorts() -> None:
    for number in range(3):
        napping_op(f"own_{number}", OWN)()
        napping_op(f"other_{number}", OTHER)()


@job
def priorities() -> None:
    for priority in (0, 3, 5, 8, 10):
        napping_op(f"priority_{priority:02}", OWN, priority)()


@job
def limited() -> None:
    """Six steps that could all go at once; three of them have a tag that a run may limit."""
    for number in range(3):
        napping_op(f"free_{number}")()
        napping_op(f"scarce_{number}", tags={"scarce": "yes"})()


@job
def pooled() -> None:
    """Steps on both queues, so that three could go at once, in a pool."""
    for number in range(2):
        for queue in ("dagster", "heavy"):
            napping_op(f"{queue}_{number}", queue, pool="test-pool")()


@graph
def mixed() -> None:
    for number in range(4):
        for queue in ("dagster", "heavy"):
            napping_op(f"mixed_{queue}_{number}", queue)()


JOBS = [wide, wide_own, line, waiting_line, alone, single, own_long, shorts, priorities, limited, pooled]
