"""The work of the drills, as a code location of its own beside `pipelines`: see `compose.yaml` in this folder.

Each execution of a step leaves two marks, at its begin and at its end, as lines of a file on the host. They count
what was executed whatever the event log says, and no fault of a drill can take them away or hold them up.
"""

import ctypes
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dagster import (
    AssetMaterialization,
    Config,
    Definitions,
    DynamicOut,
    DynamicOutput,
    In,
    Nothing,
    OpExecutionContext,
    RunRequest,
    SensorEvaluationContext,
    in_process_executor,
    job,
    op,
    schedule,
    sensor,
    static_partitioned_config,
)
from pydantic import Field

from dagster_stack import celery_executor, stack_resources

MARKS = Path("/marks")
#: Its limit is set by the drills.
POOL = "drill"
#: What each step hands on, in bytes.
OUTPUT_BYTES = 20_000
#: Seconds that a canary waits for those on the other workers.
CANARY_SECS = 90
QUEUE, PRIORITY = "dagster-celery/queue", "dagster-celery/priority"


# --- marks -----------------------------------------------------------------------------------------------


def step_key(context: OpExecutionContext) -> str:
    return context.get_step_execution_context().step.key


def mark(context: OpExecutionContext, what: str) -> None:
    """One line in one write: lines of several processes don't mix."""
    fields = (what, step_key(context), socket.gethostname(), str(os.getpid()), f"{time.time():.3f}")
    file = os.open(MARKS / context.run_id, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, f"{' '.join(fields)}\n".encode())
    finally:
        os.close(file)


@contextmanager
def marked(context: OpExecutionContext) -> Iterator[None]:
    mark(context, "begin")
    yield
    mark(context, "end")


def begun(context: OpExecutionContext) -> list[list[str]]:
    """The begin marks of the run so far, as fields."""
    lines = (MARKS / context.run_id).read_text().splitlines()
    return [fields for fields in map(str.split, lines) if fields[0] == "begin"]


# --- steps that do harm ----------------------------------------------------------------------------------


class Trouble(Config):
    """What a step does wrong, in its first so many executions."""

    how: str
    times: int = 1
    #: How long it lasts: the fault comes in that time, or it is what the step has in place of an end.
    seconds: float = 0


def make(context: OpExecutionContext, trouble: Trouble) -> None:
    executions = sum(fields[1] == step_key(context) for fields in begun(context))
    if executions > trouble.times:
        return
    if trouble.how == "memory":
        hoard = []
        while True:
            hoard.append(b"x" * (16 << 20))
    elif trouble.how == "exit":
        os._exit(3)
    elif trouble.how == "segfault":
        ctypes.string_at(0)
    elif trouble.how == "fork":
        fork(context)
    elif trouble.how == "orphan":
        leave_marking(context)
        time.sleep(trouble.seconds)
    elif trouble.how == "sleep":
        time.sleep(trouble.seconds)
    elif trouble.how == "stubborn":
        until = time.monotonic() + trouble.seconds
        while time.monotonic() < until:
            # Whatever asks it to end.
            with suppress(BaseException):
                time.sleep(until - time.monotonic())
    else:
        raise ValueError(trouble.how)


def fork(context: OpExecutionContext) -> None:
    """Children that log and leave, and one that comes back from the op as its parent does."""
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            for line in range(300):
                context.log.info(f"child {number} line {line}")
            os._exit(0)
        children.append(child)
    if child := os.fork():
        children.append(child)
    for each in children if child else []:
        os.waitpid(each, 0)


#: Goes on when its parent is gone, in a session of its own, whatever it is asked; says in a file every 50 ms that it lives.
MARKING = """
import os, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
while True:
    os.write(file, f"tool {sys.argv[2]} {sys.argv[3]} {os.getpid()} {time.time():.3f}\\n".encode())
    time.sleep(0.05)
"""


def leave_marking(context: OpExecutionContext) -> None:
    command = [
        sys.executable,
        "-c",
        MARKING,
        str(MARKS / context.run_id),
        step_key(context),
        socket.gethostname(),
    ]
    subprocess.run(command, check=True)


# --- load ------------------------------------------------------------------------------------------------


def content(name: str) -> bytes:
    """Bytes that are the same in each run: what stands in S3 after a drill can be compared."""
    return hashlib.shake_256(name.encode()).digest(OUTPUT_BYTES)


class Source(Config):
    keys: int = 10


class Nap(Config):
    #: How long a step takes.
    seconds: float = 0.15
    #: By step key.
    trouble: dict[str, Trouble] = Field(default_factory=dict)


def work(context: OpExecutionContext, config: Nap, given: bytes = b"") -> bytes:
    with marked(context):
        trouble = config.trouble.get(step_key(context))
        if trouble:
            make(context, trouble)
        time.sleep(config.seconds)
        return content(step_key(context) + hashlib.sha256(given).hexdigest())


@op(out=DynamicOut(str))
def source(context: OpExecutionContext, config: Source) -> Iterator[DynamicOutput[str]]:
    with marked(context):
        for number in range(config.keys):
            yield DynamicOutput(f"n{number}", mapping_key=f"n{number}")


@op
def leaf(context: OpExecutionContext, config: Nap, name: str) -> bytes:
    return work(context, config, name.encode())


@op
def twig(context: OpExecutionContext, config: Nap, given: bytes) -> bytes:
    return work(context, config, given)


@op(pool=POOL)
def slotted(context: OpExecutionContext, config: Nap) -> bytes:
    return work(context, config)


@op
def collect(context: OpExecutionContext, twigs: list[bytes], slots: list[bytes]) -> bytes:
    with marked(context):
        return hashlib.sha256(b"".join([*twigs, *slots])).digest()


@op(ins={"collected": In(bytes)})
def report(context: OpExecutionContext, collected: bytes) -> None:
    with marked(context):
        context.log_event(AssetMaterialization("drill_report", metadata={"digest": collected.hex()}))


@job
def load() -> None:
    """A dynamic map of two steps for each key, steps with a slot, one that gathers all, an asset."""
    twigs = source().map(lambda name: twig(leaf(name)))
    report(collect(twigs.collect(), [slotted.alias("slotted_1")(), slotted.alias("slotted_2")()]))


@static_partitioned_config([f"p{number}" for number in range(20)])
def partition(key: str) -> dict[str, object]:
    return {"ops": {"source": {"config": {"keys": 3}}}}


@job(config=partition)
def partitioned() -> None:
    """The same for a backfill of 20 partitions."""
    twigs = source().map(lambda name: twig(leaf(name)))
    report(collect(twigs.collect(), [slotted.alias("slotted_1")(), slotted.alias("slotted_2")()]))


# --- canaries --------------------------------------------------------------------------------------------


class Flock(Config):
    canaries: int


@op(out=DynamicOut(int), tags={PRIORITY: "10"})
def flock(config: Flock) -> Iterator[DynamicOutput[int]]:
    for number in range(config.canaries):
        yield DynamicOutput(config.canaries, mapping_key=f"n{number}")


@op(tags={PRIORITY: "10"})
def canary(context: OpExecutionContext, canaries: int) -> None:
    """Ends when as many workers as there are canaries have one: a deaf worker lets all of them fail."""
    with marked(context):
        deadline = time.monotonic() + CANARY_SECS
        while len({host for _, _, host, *_ in begun(context)}) < canaries:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not on {canaries} workers within {CANARY_SECS} s: {begun(context)}")
            # Between two looks at the marks.
            time.sleep(0.1)


@op(tags={QUEUE: "heavy", PRIORITY: "10"}, ins={"canaries": In(Nothing)})
def heavy_canary(context: OpExecutionContext) -> None:
    with marked(context):
        pass


@job
def canaries() -> None:
    """One step for each worker, all at the same time, then one on `heavy`."""
    heavy_canary(flock().map(canary).collect())


# --- sensors and a schedule: off until a drill switches them on -----------------------------------------------


@sensor(job=canaries, minimum_interval_seconds=1)
def broken() -> None:
    raise RuntimeError("this sensor fails on purpose")


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


defs = Definitions(
    jobs=[load, partitioned, canaries, ticked],
    sensors=[broken, counting],
    schedules=[minutely],
    resources=stack_resources(),
    executor=celery_executor,
)
