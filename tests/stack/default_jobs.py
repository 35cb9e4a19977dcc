"""A project that knows nothing of the stack: no executor, no IO manager, no import of `dagster_stack`. See `ad_hoc.py`."""

import dagster as dg


@dg.asset
def one() -> int:
    return 1


@dg.asset
def two(one: int) -> int:
    return one + 1


@dg.asset_check(asset=two)
def two_is_right(two: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=two == 2)


@dg.op
def first() -> list[int]:
    return [1, 2, 3]


# On another worker for sure.
@dg.op(tags={"dagster-celery/queue": "heavy"})
def second(numbers: list[int]) -> int:
    assert numbers == [1, 2, 3]
    return sum(numbers)


@dg.job
def chained() -> None:
    second(first())


@dg.job(executor_def=dg.multiprocess_executor)
def by_processes() -> None:
    second(first())


@dg.job(resource_defs={"io_manager": dg.mem_io_manager})
def in_memory() -> None:
    second(first())


defs = dg.Definitions(
    assets=[one, two],
    asset_checks=[two_is_right],
    jobs=[chained, by_processes, in_memory, dg.define_asset_job("numbers", selection="*")],
)
