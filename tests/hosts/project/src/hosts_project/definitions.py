"""Jobs of many steps, each of which takes a time and hands on where it ran: for tests over several hosts."""

import os
import time
from collections import Counter
from collections.abc import Iterator

from dagster import Config, Definitions, DynamicOut, DynamicOutput, OpExecutionContext, job, op


class Work(Config):
    """How many steps, and how long each takes."""

    steps: int = 10
    seconds: float = 0.2


@op(out=DynamicOut(float))
def split(config: Work) -> Iterator[DynamicOutput[float]]:
    for number in range(config.steps):
        yield DynamicOutput(config.seconds, mapping_key=str(number))


@op
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ.get("DAGSTER_STACK_HOST") or "first"


@op
def count(context: OpExecutionContext, places: list[str]) -> dict[str, int]:
    found = dict(Counter(places))
    context.log.info(f"steps by host: {found}")
    context.add_output_metadata(dict(found.items()))
    return found


@job
def spread() -> None:
    count(split().map(nap).collect())


definitions = Definitions(jobs=[spread])
