"""A project that knows nothing of the stack: it names no executor and no IO manager, or Dagster's own."""

import os
import signal
from collections.abc import Iterator

import dagster as dg


@dg.op
def one() -> int:
    return 1


@dg.op
def add_one(number: int) -> int:
    return number + 1


@dg.job
def chained() -> None:
    add_one(one())


@dg.op
def place(context: dg.OpExecutionContext) -> int:
    return os.getpid()


@dg.job
def wide() -> None:
    for number in range(3):
        place.alias(f"place_{number}")()


@dg.job(config={"execution": {"config": {"in_process": {}}}})
def in_process_by_its_config() -> None:
    place()


@dg.op(out=dg.DynamicOut())
def fan() -> Iterator[dg.DynamicOutput[int]]:
    for key in "ab":
        yield dg.DynamicOutput(1, mapping_key=key)


@dg.op
def total(numbers: list[int]) -> int:
    return sum(numbers)


@dg.job
def dynamic() -> None:
    total(fan().map(add_one).collect())


@dg.job(executor_def=dg.multiprocess_executor)
def by_processes() -> None:
    for number in range(3):
        place.alias(f"place_{number}")()


@dg.job(executor_def=dg.multiprocess_executor.configured({"max_concurrent": 2}, name="two_processes"))
def by_two_processes() -> None:
    for number in range(3):
        place.alias(f"place_{number}")()


@dg.job(executor_def=dg.multi_or_in_process_executor)
def by_either() -> None:
    place()


@dg.job(executor_def=dg.in_process_executor)
def in_process() -> None:
    place()


@dg.job(resource_defs={"io_manager": dg.mem_io_manager})
def in_memory() -> None:
    add_one(one())


@dg.op
def runs_another(context: dg.OpExecutionContext) -> int:
    with dg.execute_job(dg.reconstructable(chained), context.instance, tags={"of": context.run_id}) as result:
        value: int = result.output_for_node("add_one")
    return value


@dg.job
def nesting() -> None:
    runs_another()


@dg.op
def runs_processes(context: dg.OpExecutionContext) -> None:
    assert dg.execute_job(
        dg.reconstructable(by_either), context.instance, tags={"of": context.run_id}
    ).success


@dg.job
def nesting_processes() -> None:
    runs_processes()


@dg.op
def interrupts() -> None:
    signal.raise_signal(signal.SIGINT)


@dg.job
def interrupted() -> None:
    interrupts()
