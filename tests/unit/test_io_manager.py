"""What one step hands to the next through S3: on a real server, small and large, whole or not at all."""

import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from dagster import (
    AssetExecutionContext,
    AssetKey,
    DailyPartitionsDefinition,
    JobDefinition,
    asset,
    build_input_context,
    build_output_context,
    job,
    materialize,
    op,
)
from dagster_aws.s3 import S3PickleIOManager, S3Resource

from dagster_stack.objects import io_manager
from dagster_stack.objects.client import s3_client
from dagster_stack.objects.io_manager import S3IOManager, S3Writer, pickled_objects
from tests.unit.seaweed import BUCKET

#: The smallest part that S3 takes, in place of the usual 16 MiB.
SMALLEST_PART = 5 << 20


@pytest.fixture
def bucket(s3_url: str) -> Iterator[Any]:
    """A client of the store, whose bucket is empty again afterwards."""
    client = s3_client(s3_url)
    pickled_objects.cache_clear()
    yield client
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    pickled_objects.cache_clear()


@pytest.fixture
def manager(s3_url: str, bucket: Any) -> S3IOManager:
    return S3IOManager(bucket=BUCKET, prefix="storage", endpoint_url=s3_url)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_manager, "PART_SIZE", SMALLEST_PART)


def keys(bucket: Any) -> list[str]:
    return sorted(entry["Key"] for entry in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", []))


def handed_on(manager: S3IOManager, value: Any, name: str = "result") -> Any:
    """What the next step loads of what one stored."""
    output = build_output_context(step_key="step", name=name, run_id="run")
    manager.handle_output(output, value)
    return manager.load_input(build_input_context(upstream_output=output))


class Frame:
    """An object with large buffers that pickle hands to the file uncopied, as numpy's and pandas' have."""

    def __init__(self, *columns: bytearray) -> None:
        self.columns = columns

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Frame, tuple(pickle.PickleBuffer(column) for column in self.columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and [bytes(each) for each in self.columns] == [
            bytes(each) for each in other.columns
        ]

    __hash__ = None  # type: ignore[assignment]


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, 0, "", b"", [1, {"a": (2.5, None)}], "ünïcode ✓", b"\0" * 100_000, {"nested": [{}] * 10_000}],
    ids=lambda value: type(value).__name__,
)
def test_what_a_step_returns_is_what_the_next_one_gets(manager: S3IOManager, value: Any) -> None:
    assert handed_on(manager, value) == value


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "size",
    [SMALLEST_PART - 100, SMALLEST_PART, SMALLEST_PART + 1, 4 * SMALLEST_PART + 12345],
)
def test_a_large_object_is_sent_in_parts_and_comes_back_whole(manager: S3IOManager, size: int) -> None:
    value = os.urandom(size)

    assert handed_on(manager, value) == value


@pytest.mark.usefixtures("small_parts")
def test_an_object_of_many_buffers_comes_back_whole(manager: S3IOManager) -> None:
    """Large buffers beside small ones, as the columns of a data frame."""
    frame = Frame(*(bytearray(os.urandom(size)) for size in (10, 6_000_000, 0, 70_000, 5_500_000)))

    assert handed_on(manager, frame) == frame


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("total", [2 * SMALLEST_PART, 3 * SMALLEST_PART])
def test_an_object_that_ends_with_a_part_has_no_empty_part_too_many(
    s3_url: str, bucket: Any, total: int
) -> None:
    """S3 takes an empty last part; it costs a request, and must not harm."""
    data = os.urandom(total)

    with S3Writer(bucket, BUCKET, "exact") as file:
        file.write(data)

    assert bucket.get_object(Bucket=BUCKET, Key="exact")["Body"].read() == data


def test_an_output_written_again_is_replaced(manager: S3IOManager) -> None:
    """A second attempt of a step."""
    handed_on(manager, "the first one, which was longer")

    assert handed_on(manager, "second") == "second"


# --- nothing by halves ------------------------------------------------------------------------------------------


class Unpicklable:
    """Fails after what stands before it was written."""

    def __reduce__(self) -> Any:
        raise TypeError("this can't be pickled")


def open_uploads(bucket: Any) -> list[Any]:
    return list(bucket.list_multipart_uploads(Bucket=BUCKET).get("Uploads") or [])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [10, 3 * SMALLEST_PART], ids=["before the first part", "between parts"])
def test_an_object_that_can_not_be_pickled_leaves_nothing(
    manager: S3IOManager, bucket: Any, size: int
) -> None:
    with pytest.raises(TypeError, match="this can't be pickled"):
        handed_on(manager, [os.urandom(size), Unpicklable()])

    assert keys(bucket) == []
    assert open_uploads(bucket) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("call", ["upload_part", "complete_multipart_upload"])
def test_an_upload_that_fails_leaves_nothing_and_says_so(
    manager: S3IOManager, bucket: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("the store is away")

    monkeypatch.setattr(bucket, call, refuse)

    with pytest.raises(ConnectionError, match="the store is away"):
        handed_on(manager, os.urandom(4 * SMALLEST_PART))

    assert keys(bucket) == []
    assert open_uploads(bucket) == []


@pytest.mark.usefixtures("small_parts")
def test_while_an_object_is_written_the_old_one_is_there(bucket: Any) -> None:
    """A reader sees the old one or the new one, never a part."""
    bucket.put_object(Bucket=BUCKET, Key="a", Body=b"old")

    with S3Writer(bucket, BUCKET, "a") as file:
        file.write(os.urandom(2 * SMALLEST_PART))
        assert bucket.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"old"
        file.write(b"end")

    assert bucket.head_object(Bucket=BUCKET, Key="a")["ContentLength"] == 2 * SMALLEST_PART + 3


def test_an_output_that_is_not_there_is_named(manager: S3IOManager, bucket: Any) -> None:
    output = build_output_context(step_key="step", name="result", run_id="run")

    with pytest.raises(
        FileNotFoundError, match=r"There is no s3://dagster/storage/storage/run/step/result\."
    ):
        manager.load_input(build_input_context(upstream_output=output))


def test_an_output_that_is_there_in_part_is_no_object(s3_url: str, manager: S3IOManager, bucket: Any) -> None:
    """Another tool's broken file must not be taken for a value."""
    whole = pickle.dumps(list(range(1000)))
    bucket.put_object(Bucket=BUCKET, Key="storage/storage/run/step/result", Body=whole[:-100])
    output = build_output_context(step_key="step", name="result", run_id="run")

    with pytest.raises((EOFError, pickle.UnpicklingError)):
        manager.load_input(build_input_context(upstream_output=output))


# --- as dagster-aws does it -------------------------------------------------------------------------------------------


@op
def make() -> list[int]:
    return [1, 2, 3]


@op
def use(numbers: list[int]) -> int:
    return sum(numbers)


def a_job(resource: Any) -> JobDefinition:
    @job(resource_defs={"io_manager": resource})
    def made() -> None:
        use(make())

    return made


def test_objects_are_under_the_same_keys_as_dagster_awss(
    s3_url: str, manager: S3IOManager, bucket: Any
) -> None:
    """Op outputs: what was stored by one is found by the other, moving over needs no copy."""
    stock = S3PickleIOManager(
        s3_resource=S3Resource(
            endpoint_url=s3_url, aws_access_key_id="test", aws_secret_access_key="test-secret", region_name="us-east-1"
        ),
        s3_bucket=BUCKET,
        s3_prefix="storage",
    )  # fmt: skip

    def stored_by(resource: Any) -> list[str]:
        result = a_job(resource).execute_in_process()
        assert result.success
        made = [key.replace(result.run_id, "RUN") for key in keys(bucket)]
        for key in keys(bucket):
            bucket.delete_object(Bucket=BUCKET, Key=key)
        return made

    ours = stored_by(manager)
    assert ours == stored_by(stock)
    assert ours == ["storage/storage/RUN/make/result", "storage/storage/RUN/use/result"]


def test_what_dagster_aws_stored_is_loaded(s3_url: str, manager: S3IOManager, bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="storage/storage/run/step/result", Body=pickle.dumps({"a": 1}))

    output = build_output_context(step_key="step", name="result", run_id="run")

    assert manager.load_input(build_input_context(upstream_output=output)) == {"a": 1}


DAYS = DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")


@asset(partitions_def=DAYS)
def daily(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset
def summary(daily: dict[str, str]) -> str:
    """An asset of all days, which gets them by their names."""
    return ", ".join(f"{day}={value}" for day, value in sorted(daily.items()))


def test_partitioned_assets_have_a_key_each_and_are_loaded_together(
    manager: S3IOManager, bucket: Any
) -> None:
    resources = {"io_manager": manager}
    for day in DAYS.get_partition_keys():
        assert materialize([daily], partition_key=day, resources=resources).success

    result = materialize([daily, summary], selection=[summary], resources=resources)

    assert result.output_for_node("summary") == (
        "2026-01-01=2026-01-01, 2026-01-02=2026-01-02, 2026-01-03=2026-01-03"
    )
    days = [f"storage/@partitions/daily/2026-01-0{day}.pickle" for day in (1, 2, 3)]
    assert keys(bucket) == ["storage/@assets/summary.pickle", *days]


def test_a_missing_partition_is_named(manager: S3IOManager, bucket: Any) -> None:
    context = build_input_context(
        asset_key=AssetKey("daily"),
        partition_key="2026-01-02",
        asset_partitions_def=DAYS,
        upstream_output=build_output_context(asset_key=AssetKey("daily")),
    )

    with pytest.raises(FileNotFoundError, match=r"s3://dagster/storage/@partitions/daily/2026-01-02"):
        manager.load_input(context)


# --- what it costs -----------------------------------------------------------------------------------------------------


def test_a_small_object_is_one_request_each_way(manager: S3IOManager, bucket: Any) -> None:
    """No look whether the bucket or the object is there: each would take as long as the object itself."""
    requests: list[str] = []
    bucket.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    try:
        handed_on(manager, [1, 2, 3])
        handed_on(manager, [4, 5, 6])
    finally:
        bucket.meta.events.unregister("before-send.s3")

    assert requests == ["PUT", "GET"] * 2


@pytest.mark.usefixtures("small_parts")
def test_an_upload_holds_few_parts_and_not_the_whole_object(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step needs memory for its object, and not for a second copy of it."""
    held: list[int] = []
    with S3Writer(bucket, BUCKET, "large") as file:
        for _ in range(40):
            file.write(os.urandom(1 << 20))
            waiting = file._upload._on_their_way if file._upload else ()
            held.append(len(file._buffer) + len(waiting) * SMALLEST_PART)

    assert max(held) <= (io_manager.PARTS_AT_ONCE + 1) * SMALLEST_PART
