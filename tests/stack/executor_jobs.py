"""Jobs that show what the executor promises; as a program, it executes them one by one. See `ad_hoc.py`."""

import asyncio
import io
import json
import logging
import os
import re
import resource as resource_limits
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetOut,
    AssetsDefinition,
    AssetSpec,
    Config,
    ConfigurableResource,
    DagsterInstance,
    DataVersion,
    Definitions,
    DynamicOut,
    DynamicOutput,
    HookContext,
    In,
    InitResourceContext,
    MaterializeResult,
    MetadataValue,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    Out,
    Output,
    ReexecutionOptions,
    ResourceParam,
    RetryPolicy,
    RetryRequested,
    RunsFilter,
    SourceAsset,
    StaticPartitionsDefinition,
    TableRecord,
    asset,
    asset_check,
    define_asset_job,
    execute_job,
    failure_hook,
    graph,
    graph_asset,
    in_process_executor,
    job,
    multi_asset,
    observable_source_asset,
    op,
    resource,
    success_hook,
)
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster_celery import celery_executor as stock_celery_executor

from dagster_stack import celery_executor, stack_resources

#: Set for a run whose steps are all executed in its own process: the same jobs as Dagster's own executor has them.
IN_PROCESS = "EXECUTOR_JOBS_IN_PROCESS"
#: The tag by which a test finds its runs.
TAG = "test/ad-hoc"
QUEUE, PRIORITY = "dagster-celery/queue", "dagster-celery/priority"
#: Queues that no service of the stack consumes: tests start workers for them.
OWN, OTHER = "test-own", "test-other"


def show(context: OpExecutionContext, value: Any) -> None:
    """Metadata of a step's output, which tests read in Dagit."""
    context.add_output_metadata({"value": MetadataValue.text(str(value))})


# --- data and its ways ---------------------------------------------------------------------------------


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


# --- failures and retries ------------------------------------------------------------------------------


@op
def bad() -> int:
    raise ValueError("bad fails on purpose")


@job
def failing() -> None:
    """A step that fails, what hangs on it, and what does not."""
    broken = bad()
    follow.alias("after_after_bad")(follow.alias("after_bad")(broken))
    fine = source()
    follow.alias("after_source")(fine)
    plus.alias("joined")(fine, broken)


@op(retry_policy=RetryPolicy(max_retries=2, delay=0.1))
def third_time_lucky(context: OpExecutionContext) -> int:
    if context.retry_number < 2:
        raise ValueError(f"attempt {context.retry_number} fails")
    return context.retry_number


@op
def asks_once(context: OpExecutionContext) -> int:
    if context.retry_number < 1:
        raise RetryRequested(max_retries=1, seconds_to_wait=0.1)
    return context.retry_number


@op
def asks_too_often() -> int:
    raise RetryRequested(max_retries=1, seconds_to_wait=0.1)


@op(retry_policy=RetryPolicy(max_retries=1))
def never_lucky() -> int:
    raise ValueError("no attempt succeeds")


@job
def retrying() -> None:
    follow.alias("after_third_time_lucky")(third_time_lucky())
    follow.alias("after_asks_once")(asks_once())
    follow.alias("after_asks_too_often")(asks_too_often())
    follow.alias("after_never_lucky")(never_lucky())


@success_hook
def glad(context: HookContext) -> None:
    context.log.info(f"glad about {context.step_key} on {socket.gethostname()}")


@failure_hook
def sad(context: HookContext) -> None:
    context.log.info(f"sad about {context.step_key} on {socket.gethostname()}: {context.op_exception}")


@success_hook
def clumsy(context: HookContext) -> None:
    raise RuntimeError("a hook that fails")


@job(hooks={glad, sad})
def hooked() -> None:
    bad()
    source.with_hooks({clumsy})()


# --- resources -----------------------------------------------------------------------------------------


class Greeting(ConfigurableResource):
    word: str = "hello"


@resource
@contextmanager
def lease(context: InitResourceContext) -> Iterator[str]:
    assert context.log
    context.log.info(f"lease taken on {socket.gethostname()} by {os.getpid()}")
    try:
        yield "lease"
    finally:
        context.log.info(f"lease given back on {socket.gethostname()} by {os.getpid()}")


@resource
def unavailable(_: InitResourceContext) -> None:
    raise ConnectionError("the license server says no")


@op
def greet(context: OpExecutionContext, greeting: Greeting, lease: ResourceParam[str]) -> int:
    show(context, f"{greeting.word} {lease}")
    return 1


@op(required_resource_keys={"lease"})
def fails_with_lease() -> None:
    raise ValueError("fails while it holds the lease")


@job
def with_resources() -> None:
    greet()
    fails_with_lease()


@op(required_resource_keys={"unavailable"})
def needs_unavailable() -> int:
    return 1


@op(required_resource_keys={"unavailable"}, retry_policy=RetryPolicy(max_retries=1))
def insists_on_unavailable() -> int:
    return 1


@job
def without_resource() -> None:
    follow(needs_unavailable())
    insists_on_unavailable()
    source()


# --- assets --------------------------------------------------------------------------------------------

regions = StaticPartitionsDefinition(["north", "south"])


@asset(partitions_def=regions)
def region(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset(partitions_def=regions)
def region_report(region: str) -> MaterializeResult[str]:
    return MaterializeResult(value=region, metadata={"of": MetadataValue.text(region)})


@multi_asset(specs=[AssetSpec(name, skippable=True) for name in ("alpha", "beta", "gamma")], can_subset=True)
def family(context: AssetExecutionContext) -> Iterator[MaterializeResult[str]]:
    for key in sorted(context.selected_asset_keys):
        yield MaterializeResult(asset_key=key)


@asset(deps=["beta"])
def child() -> None:
    pass


@asset
def suspicious() -> int:
    return 1


@asset_check(asset=suspicious, blocking=True)
def must_hold(suspicious: int) -> AssetCheckResult:
    return AssetCheckResult(passed=suspicious > 1)


@asset
def built_on_suspicious(suspicious: int) -> int:
    return suspicious


@asset
def noted() -> int:
    return 1


@asset_check(asset=noted)
def may_fail(noted: int) -> AssetCheckResult:
    return AssetCheckResult(passed=noted > 1, severity=AssetCheckSeverity.WARN)


@asset
def built_on_noted(noted: int) -> int:
    return noted


@observable_source_asset
def watched() -> DataVersion:
    return DataVersion("17")


@graph_asset
def from_graph() -> Any:
    return follow(source())


#: Partitions that once shared objects, or had none. `tests/stack/test_keys.py` has them too.
AWKWARD = StaticPartitionsDefinition(["a/b", "a//b", "2024", "2024/", "./a", "a", "s3://bucket/in/a.csv"])
NESTED = [["b29"], ["b29", "orders"], ["b29/orders"]]


@asset(partitions_def=AWKWARD)
def awkward(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset
def awkward_together(context: AssetExecutionContext, awkward: dict[str, str]) -> None:
    context.add_output_metadata({"loaded": awkward})


@multi_asset(outs={f"nested_{place}": AssetOut(key=AssetKey(key)) for place, key in enumerate(NESTED)})
def nested_names():  # type: ignore[no-untyped-def]
    return tuple(range(len(NESTED)))


ASSETS: list[AssetsDefinition | SourceAsset] = [
    awkward,
    awkward_together,
    nested_names,
    region,
    region_report,
    family,
    child,
    suspicious,
    built_on_suspicious,
    noted,
    built_on_noted,
    watched,
    from_graph,
]
ASSET_JOBS = [
    define_asset_job("partitioned", ["region", "region_report"]),
    define_asset_job("families", ["alpha", "beta", "gamma", "child"]),
    define_asset_job("checked", ["suspicious", "built_on_suspicious", "noted", "built_on_noted"]),
    define_asset_job("observing", ["watched"]),
    define_asset_job("graph_assets", ["from_graph"]),
    define_asset_job("awkward_parts", [awkward]),
    define_asset_job("awkward_whole", [awkward_together]),
    define_asset_job("nested_names", [nested_names]),
]

# --- time, queues, limits ------------------------------------------------------------------------------


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


# --- that take longer than they may -----------------------------------------------------------------------


def limit(seconds: str) -> dict[str, Any]:
    """What an op is made with that may take so many seconds."""
    return {"tags": {"dagster-stack/timeout": seconds}, "out": Out(Nothing)}


@op(**limit("1"))
def sleeps() -> None:
    time.sleep(100)


@op(**limit("1"))
def ends_well() -> None:
    """As if nothing had happened."""
    with suppress(BaseException):
        time.sleep(100)


@op(**limit("3"))
def goes_on() -> None:
    while True:
        with suppress(BaseException):
            time.sleep(100)


@op(**limit("3"), retry_policy=RetryPolicy(max_retries=1))
def keeps_the_lock(context: OpExecutionContext) -> None:
    """In one call that ends after years; in its second attempt it ends at once."""
    if context.retry_number == 0:
        re.match("(a+)+$", "a" * 60 + "b")


@op(**limit("30"))
def in_time() -> None:
    time.sleep(1.5)


@op(out=Out(Nothing))
def of_its_run() -> None:
    """The run's tag limits it."""
    time.sleep(100)


@op(**limit("soon"))
def mistyped() -> None: ...


@job
def late() -> None:
    sleeps()
    ends_well()
    goes_on()
    keeps_the_lock()
    in_time()
    of_its_run()
    mistyped()


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


# --- what user code leaves behind ----------------------------------------------------------------------


def process_state() -> dict[str, Any]:
    """What a step may take for granted about its process."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "leak": os.environ.get("LEAK"),
        "home": os.environ.get("HOME"),
        "path": sys.path,
        "umask": umask,
        "zone": time.tzname,
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "silenced": logging.root.manager.disable,
        "patience": socket.getdefaulttimeout(),
        "open files": resource_limits.getrlimit(resource_limits.RLIMIT_NOFILE)[0],
        "handlers": {
            signal.Signals(number).name: str(
                getattr(signal.getsignal(number), "__qualname__", signal.getsignal(number))
            )
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)
        },
    }


@op(tags={QUEUE: "heavy"})
def before_leak(context: OpExecutionContext) -> None:
    show(context, json.dumps(process_state()))
    context.instance.add_run_tags(context.run_id, {"test/rows": "5"})


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def leak() -> None:
    folder = tempfile.mkdtemp()
    Path(tempfile.mkdtemp(), "file").write_text("left")
    os.chdir(folder)
    shutil.rmtree(folder)
    os.environ["LEAK"] = "everywhere"
    os.environ.pop("HOME", None)
    sys.path.insert(0, folder)
    os.umask(0o777)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    signal.alarm(1)
    logging.disable()
    socket.setdefaulttimeout(0.001)
    resource_limits.setrlimit(
        resource_limits.RLIMIT_NOFILE, (100, resource_limits.getrlimit(resource_limits.RLIMIT_NOFILE)[1])
    )
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    sys.stdout.close()


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def after_leak(context: OpExecutionContext) -> None:
    print("stdout is heard again", flush=True)
    time.sleep(1.1)
    Path(tempfile.mkdtemp(), "file").write_text("can be written")
    show(context, json.dumps(process_state()))
    context.add_output_metadata(
        {
            "rows": MetadataValue.text(context.run.tags.get("test/rows", "none")),
            "left": MetadataValue.text(" ".join(os.listdir(Path(tempfile.gettempdir()).parent))),
        }
    )


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def leave_thread() -> None:
    threading.Thread(target=threading.Event().wait, name="poller", daemon=False).start()


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def after_thread(context: OpExecutionContext) -> None:
    show(context, " ".join(each.name for each in threading.enumerate()))


@op(tags={QUEUE: "heavy", "dagster-stack/isolation": "process"}, ins={"start": In(Nothing)})
def killed_once(context: OpExecutionContext) -> None:
    """In a process of its own, which is killed the first time."""
    print("printed apart", flush=True)
    show(context, os.getpid())
    if "test/killed" not in context.run.tags:
        context.instance.add_run_tags(context.run_id, {"test/killed": str(os.getpid())})
        os.kill(os.getpid(), signal.SIGKILL)


@op(tags={QUEUE: "heavy", "dagster-stack/isolation": "process"}, ins={"start": In(Nothing)})
def nap_apart(context: OpExecutionContext) -> None:
    time.sleep(300)


@job
def leaking() -> None:
    killed_once(after_thread(leave_thread(after_leak(leak(before_leak())))))


@job
def apart() -> None:
    nap_apart()


@op
def write_long_tag(context: OpExecutionContext) -> None:
    """A run's tag that Postgres does not take: longer than an index does, and it can't be compressed."""
    context.instance.add_run_tags(context.run_id, {"long": os.urandom(4000).hex()})


@job
def refused() -> None:
    write_long_tag()


# --- what a step may say, print and leave ----------------------------------------------------------------

#: What no encoding takes, what Postgres does not know, and what is in order.
ODD = "file\udcff\0😀"


@op
def talk_oddly(context: OpExecutionContext) -> Iterator[Any]:
    context.log.info(f"said {ODD}")
    context.log.info("m" * 10_000_000)
    context.instance.add_run_tags(context.run_id, {f"tag {ODD}": ODD})
    print(f"printed {ODD}".encode(errors="surrogateescape").decode(errors="replace"))
    os.write(1, b"not UTF-8: \xff\n")
    metadata: dict[str, Any] = {
        ODD: ODD,
        "json": {ODD: [ODD, float("nan")]},
        "long json": {"numbers": list(range(1_000_000))},
        "table": MetadataValue.table([TableRecord({"text": ODD, "number": float("inf")})]),
        "path": MetadataValue.path(ODD),
        "url": MetadataValue.url(ODD),
        "md": MetadataValue.md(ODD),
        "number": float("nan"),
        "large": 10**30,
        "time": MetadataValue.timestamp(float("nan")),
    }
    yield AssetMaterialization(["odd", "materialized"], description=ODD, metadata=metadata)
    yield AssetObservation(["odd", "observed"], description=ODD, metadata=metadata)
    yield Output(None, metadata=metadata)


@op(ins={"start": In(Nothing)})
def fail_oddly() -> None:
    error: Exception = ValueError(ODD)
    for number in range(1000):
        effect = ValueError(f"cause {number} {ODD}")
        effect.__cause__, error = error, effect
    raise ExceptionGroup("several", [OSError(ODD), error]) from error


@job
def talking_oddly() -> None:
    fail_oddly(talk_oddly())


@op
def print_much() -> None:
    os.write(1, bytes(1_300_000_000))
    subprocess.run("yes | head -c 300000000", shell=True, check=True)
    print("it goes on", file=sys.stderr)


@job
def printing_much() -> None:
    print_much()


def reserve(file: Path, megabytes: int) -> None:
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, megabytes << 20)


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def leave_file(context: OpExecutionContext) -> None:
    folder = Path(f"/tmp/left by {context.op_handle.name}")
    folder.mkdir(exist_ok=True)
    reserve(folder / "large.csv", 300)


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def fill() -> None:
    reserve(Path(tempfile.gettempdir()) / "large.bin", 200)
    reserve(Path(tempfile.gettempdir()) / "larger.bin", 2000)


@op(tags={QUEUE: "heavy"})
def heavy_step() -> None: ...


@job
def leaving_files() -> None:
    done = heavy_step()
    for number in range(1, 5):
        done = leave_file.alias(f"leave_{number}")(done)
    fill(done)


@job
def heavy_alone() -> None:
    heavy_step()


OURS = [
    talking_oddly, printing_much, leaving_files, heavy_alone,
    fan_in, branching, dynamic, repeatable, chain, nested, failing, retrying, hooked, with_resources, without_resource,
    wide, wide_own, line, waiting_line, alone, single, own_long, shorts, priorities, limited, pooled, leaking, apart,
    refused, late,
    mixed.to_job("mixed_ours"),
]  # fmt: skip

defs = Definitions(
    jobs=[*OURS, mixed.to_job("mixed_stock", executor_def=stock_celery_executor), *ASSET_JOBS],
    assets=ASSETS,
    asset_checks=[must_hold, may_fail],
    executor=in_process_executor if os.environ.get(IN_PROCESS) else celery_executor,
    resources={
        **stack_resources(),
        "greeting": Greeting.configure_at_launch(),
        "lease": lease,
        "unavailable": unavailable,
    },
)

# --- the program ---------------------------------------------------------------------------------------


def execute(spec: dict[str, Any]) -> None:
    """One run to its end. `again` is the mark of the run to be repeated from its failure."""
    if spec.get("in_process"):
        os.environ[IN_PROCESS] = "1"
    code = ReconstructableRepository.for_file(__file__, "defs", str(Path(__file__).parent))
    with DagsterInstance.get() as instance:
        options = None
        if parent := spec.get("again"):
            (run,) = instance.get_runs(RunsFilter(tags={TAG: parent}))
            options = ReexecutionOptions.from_failure(run.run_id, instance)
        execute_job(
            code.get_reconstructable_job(spec["job"]),
            instance,
            run_config=spec.get("config"),
            tags={**spec.get("tags", {}), TAG: spec["mark"]},
            op_selection=spec.get("ops"),
            asset_selection=[AssetKey(name) for name in spec["assets"]] if spec.get("assets") else None,
            reexecution_options=options,
        )


def main(specs: list[dict[str, Any]], at_once: bool) -> int:
    """Each run in a process of its own, as every launcher has it, but without loading Dagster each time."""
    failed = 0
    children = []
    for spec in specs:
        child = os.fork()
        if not child:
            try:
                execute(spec)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
        if not at_once:
            failed |= os.waitpid(children.pop(), 0)[1]
    for child in children:
        failed |= os.waitpid(child, 0)[1]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), at_once="--at-once" in sys.argv))
