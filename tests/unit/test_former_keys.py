"""What was stored under the names of Dagster's own IO managers stays readable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetExecutionContext,
    DagsterInstance,
    DynamicOut,
    DynamicOutput,
    MultiPartitionsDefinition,
    StaticPartitionsDefinition,
    asset,
    build_input_context,
    build_output_context,
    materialize,
    op,
)
from dagster._core.storage.fs_io_manager import PickledObjectFilesystemIOManager

from dagster_stack.objects.client import s3_client
from dagster_stack.objects.io_manager import FormerNames, S3IOManager, pickled_objects
from dagster_stack.objects.pickles import LocalIOManager, LocalPickles, Pickles
from tests.unit.seaweed import BUCKET


class Before(FormerNames):
    """What the stack had: dagster-aws's IO manager."""

    def __init__(self, prefix: str, client: Any) -> None:
        super().__init__(prefix)
        self.bucket, self.s3 = BUCKET, client


@pytest.fixture(params=["s3", "local"])
def managers(request: pytest.FixtureRequest, s3_url: str, tmp_path: Path) -> tuple[Any, Any]:
    """What stored before, and what loads now, of the same place."""
    if request.param == "local":
        return PickledObjectFilesystemIOManager(str(tmp_path)), LocalIOManager(base_dir=str(tmp_path))
    prefix = f"storage/{tmp_path.name}"
    now = S3IOManager(bucket=BUCKET, prefix=prefix, endpoint_url=s3_url)
    return Before(prefix, s3_client(s3_url)), now


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


ROWS = StaticPartitionsDefinition(["2024-01-01", "2024/01", "2023/", "./a", "Ü", "x.y"])
GRID = MultiPartitionsDefinition({"row": ROWS, "column": StaticPartitionsDefinition(["1", "2"])})


@asset
def plain() -> str:
    return "plain"


@asset(partitions_def=ROWS)
def rows(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset(partitions_def=GRID)
def grid(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset
def summary(
    plain: str, rows: dict[str, str], grid: dict[str, str]
) -> tuple[str, dict[str, str], dict[str, str]]:
    return plain, rows, grid


def test_assets_and_partitions_that_were_stored_before_are_loaded(
    managers: tuple[Any, Any], instance: DagsterInstance
) -> None:
    before, now = managers
    materialize([plain], resources={"io_manager": before}, instance=instance)
    for each, partitions in ((rows, ROWS), (grid, GRID)):
        for key in partitions.get_partition_keys():
            materialize([each], partition_key=key, resources={"io_manager": before}, instance=instance)

    result = materialize(
        [plain, rows, grid, summary], selection=[summary], resources={"io_manager": now}, instance=instance
    )

    assert result.output_for_node("summary") == (
        "plain",
        {key: key for key in ROWS.get_partition_keys()},
        {key: key for key in GRID.get_partition_keys()},
    )


def test_what_is_made_again_is_loaded_and_not_what_lies_under_the_former_name(
    managers: tuple[Any, Any], instance: DagsterInstance
) -> None:
    before, now = managers
    values = iter(["old", "new"])
    for manager, value in ((before, "old"), (now, "new")):

        @asset(name="changing")
        def changing() -> str:
            return next(values)

        @asset
        def use(changing: str) -> str:
            return changing

        result = materialize([changing, use], resources={"io_manager": manager}, instance=instance)
        assert result.output_for_node("use") == value


@op(out=DynamicOut())
def split() -> Any:
    for number in range(3):
        yield DynamicOutput(number, mapping_key=f"part_{number}")


@op
def double(number: int) -> int:
    return 2 * number


@op
def total(numbers: list[int]) -> int:
    return sum(numbers)


def test_a_run_that_was_under_way_goes_on_with_what_its_steps_stored_before(
    managers: tuple[Any, Any],
) -> None:
    """Outputs of steps, of mapped ones, and dynamic ones."""
    before, now = managers
    for step, name, mapping_key in (
        ("a", "result", None),
        ("a[x]", "result", None),
        ("graph.a", "other", None),
        ("split", "result", "x"),
    ):
        output = build_output_context(run_id="run", step_key=step, name=name, mapping_key=mapping_key)
        before.handle_output(output, (step, name, mapping_key))

        assert now_pickles(now).load_input(build_input_context(upstream_output=output)) == (
            step,
            name,
            mapping_key,
        )


def now_pickles(manager: Any) -> Pickles:
    if isinstance(manager, LocalIOManager):
        assert manager.base_dir
        return LocalPickles(manager.base_dir)
    return pickled_objects(manager.bucket, manager.prefix, manager.endpoint_url)


# --- former names that several partitions had in common --------------------------------------------------------------------------


PAIRS = StaticPartitionsDefinition(["a/b", "a//b", "c"])


@asset(partitions_def=PAIRS)
def pairs(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset(partitions_def=PAIRS)
def loaded(pairs: str) -> str:
    return pairs


@pytest.mark.parametrize("wanted", ["a/b", "a//b"])
def test_what_two_partitions_wrote_to_one_place_is_nobodys(
    managers: tuple[Any, Any], instance: DagsterInstance, wanted: str
) -> None:
    """The second one had overwritten the first: to give its data to either would be a guess."""
    before, now = managers
    for key in ("a/b", "a//b"):
        materialize([pairs], partition_key=key, resources={"io_manager": before}, instance=instance)
    use = {"selection": [loaded], "partition_key": wanted, "resources": {"io_manager": now}}

    result = materialize([pairs, loaded], instance=instance, raise_on_error=False, **use)  # type: ignore[arg-type]
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "was shared by the partitions" in str(failure.step_failure_data.error)
    assert "again" in str(failure.step_failure_data.error)

    # When it is made again, it has its own
    materialize([pairs], partition_key=wanted, resources={"io_manager": now}, instance=instance)
    result = materialize([pairs, loaded], instance=instance, **use)  # type: ignore[arg-type]
    assert result.output_for_node("loaded") == wanted


def test_a_partition_that_was_alone_at_its_place_is_loaded_though_a_like_one_was_made_since(
    managers: tuple[Any, Any], instance: DagsterInstance
) -> None:
    before, now = managers
    materialize([pairs], partition_key="a/b", resources={"io_manager": before}, instance=instance)
    materialize([pairs], partition_key="a//b", resources={"io_manager": now}, instance=instance)

    for key in ("a/b", "a//b"):
        result = materialize(
            [pairs, loaded],
            selection=[loaded],
            partition_key=key,
            resources={"io_manager": now},
            instance=instance,
        )
        assert result.output_for_node("loaded") == key


def test_what_is_nowhere_is_named_by_the_name_that_it_has_now(managers: tuple[Any, Any]) -> None:
    result = materialize(
        [pairs, loaded],
        selection=[loaded],
        partition_key="c",
        resources={"io_manager": managers[1]},
        raise_on_error=False,
    )

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "@partitions/pairs/c.pickle" in str(failure.step_failure_data.error)


def test_an_object_that_is_there_is_one_request(s3_url: str, instance: DagsterInstance) -> None:
    manager = S3IOManager(bucket=BUCKET, prefix="storage/one", endpoint_url=s3_url)
    resources = {"io_manager": manager}
    materialize([pairs], partition_key="c", resources=resources, instance=instance)
    requests: list[str] = []
    client = s3_client(s3_url)
    handler = lambda request, **_: requests.append(request.method)  # noqa: E731
    client.meta.events.register("before-send.s3", handler)
    try:
        materialize(
            [pairs, loaded], selection=[loaded], partition_key="c", resources=resources, instance=instance
        )
    finally:
        client.meta.events.unregister("before-send.s3", handler)

    assert requests == ["GET", "PUT"]
