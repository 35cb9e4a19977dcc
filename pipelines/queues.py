"""`queues`: which steps wait for which. Tags send a step to a queue and give it a priority there."""

import os
import socket
import time
from datetime import UTC, datetime
from typing import NamedTuple

from dagster import Config, MetadataValue, OpDefinition, OpExecutionContext, Out, job, op
from pydantic import Field

#: The priorities of the light steps in the order of their definition: mixed up, so that the order in
#: which they start shows the priority and not the definition. 10 goes first.
LIGHT_PRIORITIES = (3, 7, 1, 10, 5, 8, 2, 9, 4, 6, 10, 1)
HEAVY_STEPS = 4


class Nap(Config):
    """How long a step keeps its worker busy."""

    seconds: float = Field(default=1.0, ge=0, description="Seconds that the step sleeps.")


class Start(NamedTuple):
    """Where and when a step began."""

    step: str
    queue: str
    priority: int
    started_at: float
    worker: str


def queued_op(name: str, queue: str, priority: int) -> OpDefinition:
    """An op that sleeps on `queue` and reports when and where it ran."""

    @op(
        name=name,
        description=f"Sleeps on the queue {queue} with priority {priority}.",
        tags={"dagster-celery/queue": queue, "dagster-celery/priority": str(priority)},
        out=Out(Start),
    )
    def nap(context: OpExecutionContext, config: Nap) -> Start:
        start = Start(name, queue, priority, time.time(), f"{socket.gethostname()} (pid {os.getpid()})")
        context.add_output_metadata(
            {
                "queue": queue,
                "priority": priority,
                "started_at": MetadataValue.timestamp(start.started_at),
                "worker": start.worker,
            }
        )
        time.sleep(config.seconds)
        return start

    return nap


@op
def start_order(context: OpExecutionContext, starts: list[Start]) -> None:
    """Lists the steps as they started: on a queue with one worker process, by falling priority."""
    context.add_output_metadata({"order": MetadataValue.md(order_table(starts))})


def order_table(starts: list[Start]) -> str:
    """A Markdown table of the steps, first one first."""
    lines = ["| # | started (UTC) | queue | priority | step | worker |", "|--:|---|---|--:|---|---|"]
    for place, start in enumerate(sorted(starts, key=lambda start: start.started_at), start=1):
        clock = datetime.fromtimestamp(start.started_at, UTC).strftime("%H:%M:%S.%f")[:-3]
        lines.append(
            f"| {place} | {clock} | {start.queue} | {start.priority} | {start.step} | {start.worker} |"
        )
    return "\n".join(lines)


LIGHT = [
    queued_op(f"light_{number:02}_priority_{priority:02}", "dagster", priority)
    for number, priority in enumerate(LIGHT_PRIORITIES, start=1)
]
HEAVY = [queued_op(f"heavy_{number}", "heavy", 5) for number in range(1, HEAVY_STEPS + 1)]


@job
def queues() -> None:
    """12 light steps by priority on `dagster`, 4 heavy ones, one at a time, on `heavy`.

    The Gantt chart of a run with one `worker` process shows the order; the last step lists it.
    """
    start_order([step() for step in LIGHT + HEAVY])
