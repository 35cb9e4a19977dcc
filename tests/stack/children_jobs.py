"""Jobs whose steps start processes, and jobs of other executors; as a program, it hands runs of them to the runners."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    Executor,
    InitExecutorContext,
    OpExecutionContext,
    RetryPolicy,
    executor,
    get_dagster_logger,
    job,
    multiprocess_executor,
    op,
)
from dagster._core.definitions.reconstruct import ReconstructableRepository

from dagster_stack import celery_executor, stack_resources
from dagster_stack.launch.launcher import CeleryRunLauncher

TAG = "test/children"
#: On a run that a step executes by itself: the step's run.
OUTER = "test/outer"
#: Stands in the command of each process that a step leaves, for whoever looks for them.
MARK = "left-by-a-test"
#: A process that only SIGKILL ends, in a session of its own, and whose parent is gone. It prints a line when it is so.
STUBBORN = """
import os, signal, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
print("left", flush=True)
time.sleep(600)
"""


def leave_stubborn() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN, MARK], stdout=subprocess.PIPE) as process:
        # Until then a look at all processes may miss it, between one that has ended and one that is not there yet.
        assert process.stdout
        assert process.stdout.readline() == b"left\n"
    assert process.returncode == 0


def of_tests() -> list[str]:
    """Processes of this container that a step has left."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if MARK in file.read_text() and "sleep(600)" in file.read_text():
                found.append(file.parent.name)
    return found


# --- multiprocessing -----------------------------------------------------------------------------------


def use(method: str) -> None:
    multiprocessing_: Any = multiprocessing.get_context(method)
    # Neither is ended by the step.
    pool = multiprocessing_.Pool(2)
    assert pool.map(math.sqrt, [4, 9]) == [2, 3]
    workers = ProcessPoolExecutor(2, mp_context=multiprocessing_)
    assert list(workers.map(math.sqrt, [4, 9])) == [2, 3]
    with multiprocessing_.Manager() as manager:
        shared = manager.list([1])
        process = multiprocessing_.Process(target=shared.append, args=(2,))
        process.start()
        process.join(60)
        assert list(shared) == [1, 2]
    LEFT.extend([pool, workers])


LEFT: list[Any] = []


@op
def by_fork() -> None:
    use("fork")


@op
def by_spawn() -> None:
    use("spawn")


@op
def by_forkserver() -> None:
    use("forkserver")


@op
def with_much_shared_memory() -> None:
    memory = SharedMemory(create=True, size=200_000_000)
    assert memory.buf
    memory.buf[:] = bytes(200_000_000)


@op
def with_many_threads() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(600)]
    for thread in threads:
        thread.start()
    over.set()
    for thread in threads:
        thread.join()


@op
def forking(context: OpExecutionContext) -> int:
    child = os.fork()
    if not child:
        for number in range(300):
            get_dagster_logger().info(f"child's line {number}")
        os._exit(0)
    os.waitpid(child, 0)
    returning = os.fork()
    if returning:
        os.waitpid(returning, 0)
        context.log.info("said by the parent")
    return os.getpid()


@op
def leaving(context: OpExecutionContext) -> None:
    leave_stubborn()
    assert of_tests()


@job(executor_def=celery_executor)
def starting() -> None:
    for each in (
        by_fork,
        by_spawn,
        by_forkserver,
        with_much_shared_memory,
        with_many_threads,
        forking,
        leaving,
    ):
        each()


# --- shared memory and processes beyond the limit ------------------------------------------------------


@op
def beyond_shared_memory() -> None:
    size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize + 50_000_000
    memory = SharedMemory(create=True, size=size)
    assert memory.buf
    for place in range(0, size, 4096):
        memory.buf[place] = 1


@job(executor_def=celery_executor)
def too_much() -> None:
    beyond_shared_memory()


# --- a process that is killed, with children that are not ------------------------------------------------


@op(retry_policy=RetryPolicy(max_retries=1))
def retried(context: OpExecutionContext) -> None:
    assert not of_tests(), "the first attempt's process is still there"
    if context.retry_number == 0:
        leave_stubborn()
        raise ValueError("the first attempt fails")


@op
def killed(context: OpExecutionContext) -> None:
    assert not of_tests(), "the first execution's process is still there"
    begun = Path("/tmp", f"begun-{context.run_id}")
    if not begun.exists():
        begun.touch()
        leave_stubborn()
        os.kill(os.getpid(), signal.SIGKILL)


@op
def kill_once(context: OpExecutionContext) -> None:
    begun = Path("/tmp", f"inner-{context.run.tags[OUTER]}")
    if not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@job
def inner() -> None:
    kill_once()


@op
def executing_a_run(context: OpExecutionContext) -> None:
    inner.execute_in_process(instance=context.instance, tags={OUTER: context.run_id})


@job(executor_def=celery_executor)
def losing() -> None:
    retried()
    killed()
    executing_a_run()


# --- other executors, within the runner ----------------------------------------------------------------


@op
def printing() -> int:
    print("printed in a process of the runner")
    return 1


@op
def plus_one(number: int) -> int:
    return number + 1


@job(executor_def=multiprocess_executor)
def by_processes() -> None:
    plus_one(printing())


@job(executor_def=multiprocess_executor.configured({"start_method": {"forkserver": {}}}))
def by_forked_processes() -> None:
    plus_one(printing())


@op
def stubborn_op() -> None:
    leave_stubborn()
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with suppress(BaseException):
            time.sleep(1)


@job(executor_def=multiprocess_executor)
def stubborn_by_processes() -> None:
    stubborn_op()


class Broken(Executor):
    retries = property(lambda self: None)

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        raise AssertionError("an executor that can't")


@executor(name="broken")
def broken_executor(_: InitExecutorContext) -> Executor:
    return Broken()


@job(executor_def=broken_executor)
def by_a_broken_executor() -> None:
    printing()


defs = Definitions(
    jobs=[
        starting, too_much, losing, by_processes, by_forked_processes, stubborn_by_processes, by_a_broken_executor,
    ],
    resources=stack_resources(),
)  # fmt: skip


def main(wanted: dict[str, str]) -> None:
    """A run of each job, with its mark."""
    code = ReconstructableRepository.for_file(__file__, "defs", str(Path(__file__).parent))
    with DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, CeleryRunLauncher)
        for name, mark in wanted.items():
            found = code.get_reconstructable_job(name)
            run = instance.create_run_for_job(
                found.get_definition(),
                status=DagsterRunStatus.STARTING,
                tags={TAG: mark},
                job_code_origin=found.get_python_origin(),
            )
            launcher.hand_over(run)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
