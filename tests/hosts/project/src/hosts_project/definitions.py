"""Jobs of many steps, each of which takes a time and hands on where it ran: for tests over several hosts."""

import os
import time
from collections import Counter
from collections.abc import Iterator

from dagster import (
    Config,
    Definitions,
    DynamicOut,
    DynamicOutput,
    OpExecutionContext,
    RunRequest,
    SensorEvaluationContext,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
)


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


# --- a sensor and a schedule: off until a test switches them on ----------------------------------------------


@op
def ticked_step() -> None:
    pass


@job(executor_def=in_process_executor)
def ticked() -> None:
    """What is launched by a tick."""
    ticked_step()


@sensor(job=ticked, minimum_interval_seconds=4)
def counting(context: SensorEvaluationContext) -> RunRequest:
    """One run a tick, with the next number as its key."""
    number = int(context.cursor or 0) + 1
    context.update_cursor(str(number))
    return RunRequest(run_key=str(number))


@schedule(job=ticked, cron_schedule="* * * * *")
def minutely() -> RunRequest:
    return RunRequest()


definitions = Definitions(jobs=[spread, ticked], sensors=[counting], schedules=[minutely])
