"""Distinct things have distinct objects, whatever text Dagster lets pass."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    DagsterInstance,
    DynamicOut,
    DynamicOutput,
    DynamicPartitionsDefinition,
    MultiPartitionKey,
    MultiPartitionsDefinition,
    StaticPartitionsDefinition,
    asset,
    build_output_context,
    job,
    materialize,
    multi_asset,
    op,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_stack.errors import InvalidKey
from dagster_stack.objects import keys
from dagster_stack.objects.io_manager import S3IOManager, pickled_objects
from dagster_stack.objects.object_store import LocalObjectStore, S3ObjectStore
from dagster_stack.objects.pickles import LocalIOManager, LocalPickles
from tests.unit.seaweed import BUCKET

#: Lone surrogates, control characters and NUL included.
ANY_TEXT = st.text(max_size=12) | st.text(st.sampled_from("ab./%~-_,|@[]() \\\0\udcff\u0301éÉß"), max_size=6)
LONG_TEXT = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=4), st.integers(60, 400))
TEXT = ANY_TEXT | LONG_TEXT
NAME = st.text(st.sampled_from("ab_1"), min_size=1, max_size=4) | st.sampled_from(["result", "x" * 300])
PARTITION = TEXT | st.dictionaries(NAME, TEXT, min_size=2, max_size=3).map(MultiPartitionKey)
ASSET = st.tuples(st.just("asset"), st.lists(TEXT, max_size=4).map(tuple), st.none() | PARTITION)
STEP = st.builds(lambda op, mapped: f"{op}[{mapped}]" if mapped else op, NAME | TEXT, st.none() | NAME)
OUTPUT = st.tuples(st.just("output"), st.just("run") | TEXT, STEP, NAME, st.none() | NAME)
THING = ASSET | OUTPUT
PREFIX = st.sampled_from(["", "storage", "team/a/storage", "p" * 200])


def key_of(thing: tuple[Any, ...], prefix: str = "storage", folding: bool = False) -> str:
    kind, *of = thing
    return keys.key(prefix, keys.asset(*of) if kind == "asset" else keys.output(*of), folding)


def identity(thing: tuple[Any, ...]) -> Any:
    """What must differ: dimensions are parts of their own, in the order of their names."""
    partition = thing[2]
    if thing[0] != "asset" or partition is None:
        return thing
    if isinstance(partition, MultiPartitionKey):
        return (*thing[:2], tuple(each.partition_key for each in partition.dimension_keys))
    return (*thing[:2], tuple(partition.split("|")))


def segments_fit(key: str) -> bool:
    parts = key.split("/")
    return (
        len(key.encode()) <= 1024
        and all(0 < len(part.encode()) <= 255 and part not in (".", "..") for part in parts)
        and all(part == part.strip(" ") and not part.endswith(".") for part in parts)
        and all(char.isprintable() and char not in '\\"<>?*' for char in key)
    )


@settings(max_examples=400)
@given(st.lists(THING, min_size=2, max_size=8), PREFIX, st.booleans())
def test_distinct_things_have_distinct_names_and_none_is_anothers_folder(
    things: list[tuple[Any, ...]], prefix: str, folding: bool
) -> None:
    distinct = list({identity(thing): thing for thing in things}.values())
    named = [key_of(thing, prefix, folding) for thing in distinct]

    for one, other in combinations(named, 2):
        assert one != other
        assert not one.startswith(f"{other}/")
        assert not other.startswith(f"{one}/")
        if folding:
            assert one.casefold() != other.casefold()
    assert all(map(segments_fit, named))


@settings(max_examples=300)
@given(THING, PREFIX)
def test_a_name_depends_on_the_thing_alone(thing: tuple[Any, ...], prefix: str) -> None:
    once = key_of(thing, prefix)
    keys.segment.cache_clear()

    assert key_of(thing, prefix) == once


NEIGHBOURS: list[tuple[Any, ...]] = [
    ("asset", ("x",), "a/b"), ("asset", ("x",), "a//b"), ("asset", ("x",), "/a/b"), ("asset", ("x",), "a/b/"),
    ("asset", ("x",), "2024"), ("asset", ("x",), "2024/"), ("asset", ("x",), "./a"), ("asset", ("x",), "a"),
    ("asset", ("x",), ""), ("asset", ("x",), "."), ("asset", ("x",), ".."), ("asset", ("x",), " "), ("asset", ("x",), "%"),
    ("asset", ("x",), "a%2fb"), ("asset", ("x",), "a%2Fb"), ("asset", ("x",), "s3://bucket/in/a.csv"),
    ("asset", ("x",), "a.pickle"), ("asset", ("x", "a"), None), ("asset", ("x",), None), ("asset", ("x.pickle",), None),
    ("asset", ("x.pickle", "a"), None), ("asset", ("x%2epickle", "a"), None), ("asset", ("x%2Epickle", "a"), None),
    ("asset", ("x/a",), None), ("asset", ("x", "", "a"), None), ("asset", ("x", ".", "a"), None), ("asset", (), None),
    ("asset", ("",), None), ("asset", ("~",), None), ("asset", ("x" * 300,), None), ("asset", ("x" * 301,), None),
    ("asset", tuple("x" * 200 for _ in range(9)), None), ("asset", tuple("x" * 200 for _ in range(10)), None),
    ("asset", ("X",), None), ("asset", ("é",), None), ("asset", ("e\u0301",), None), ("asset", ("\udcff",), None),
    ("asset", ("ÿ",), None), ("asset", ("x",), MultiPartitionKey({"a": "1", "b": "2/3"})),
    ("asset", ("x",), MultiPartitionKey({"a": "1/2", "b": "3"})), ("asset", ("x",), MultiPartitionKey({"a": "1|2", "b": "3"})),
    ("asset", ("x",), MultiPartitionKey({"a": "1", "b": "2|3"})), ("asset", ("x",), "1,2"),
    ("asset", ("x",), MultiPartitionKey({"b": "1", "a": "2"})),
    ("output", "run", "x", "a", None), ("output", "run", "x", "a", "b"), ("output", "run", "x", "a--b", None),
    ("output", "run", "x[a]", "b", None), ("output", "run", "x", "b", "a"), ("output", "run", "x--a", "b", None),
    ("asset", ("storage", "run", "x", "a"), None), ("asset", ("@assets", "x"), None), ("asset", ("@partitions", "x"), "a"),
]  # fmt: skip


@pytest.mark.parametrize("folding", [False, True])
def test_what_once_shared_a_name_has_its_own(folding: bool) -> None:
    named = {key_of(thing, folding=folding) for thing in NEIGHBOURS}

    assert len(named) == len(NEIGHBOURS)
    assert not [(one, other) for one in named for other in named if other.startswith(f"{one}/")]
    assert all(map(segments_fit, named))


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (("asset", ("b29",), None), "storage/@assets/b29.pickle"),
        (("asset", ("b29", "orders"), None), "storage/@assets/b29/orders.pickle"),
        (("asset", ("daily",), "2026-01-01"), "storage/@partitions/daily/2026-01-01.pickle"),
        (("asset", ("hourly",), "2026-01-01-05:00"), "storage/@partitions/hourly/2026-01-01-05:00.pickle"),
        (("asset", ("Größen",), "straße 1"), "storage/@partitions/Größen/straße%201.pickle"),
        (
            ("asset", ("grid",), MultiPartitionKey({"shape": "round", "color": "red"})),
            "storage/@partitions/grid/red,round.pickle",
        ),
        (
            ("asset", ("files",), "s3://bucket/in/a.csv"),
            "storage/@partitions/files/s3:%2f%2fbucket%2fin%2fa.csv.pickle",
        ),
        (("output", "r-1", "a.b", "result", None), "storage/storage/r-1/a.b/result"),
        (("output", "r-1", "a.b[k]", "result", None), "storage/storage/r-1/a.b--k/result"),
        (("output", "r-1", "a", "result", "k"), "storage/storage/r-1/a/result--k"),
    ],
)
def test_ordinary_names_are_read_at_a_glance(thing: tuple[Any, ...], name: str) -> None:
    assert key_of(thing) == name


def test_a_long_name_keeps_its_beginning() -> None:
    name = key_of(("asset", ("orders_of_the_year" + "x" * 3000, "b"), None))

    assert name.startswith("storage/@assets/orders_of_the_yearx")
    assert name.endswith("/b.pickle")


# --- on the stores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("values")
    return [pickled_objects(BUCKET, "storage", s3_url), LocalPickles(str(folder))]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(THING, min_size=1, max_size=5, unique_by=identity))
def test_each_thing_comes_back_from_both_stores(places: list[Any], things: list[tuple[Any, ...]]) -> None:
    context = build_output_context(step_key="step", name="result", run_id="run")
    for place in places:
        named = [key_of(thing, folding=isinstance(place, LocalPickles)) for thing in things]
        for number, key in enumerate(named):
            place.dump(context, number, key)
        assert [place.load(key) for key in named] == list(range(len(things)))


@pytest.fixture(params=["s3", "local"])
def manager(request: pytest.FixtureRequest, s3_url: str, tmp_path: Path) -> Any:
    if request.param == "local":
        return LocalIOManager(base_dir=str(tmp_path))
    return S3IOManager(bucket=BUCKET, prefix=f"storage/{tmp_path.name}", endpoint_url=s3_url)


FILES = DynamicPartitionsDefinition(name="files")
AWKWARD = ["s3://bucket/in/a.csv", "a/b", "a//b", "/a/b", "2024", "2024/", "./a", "a", "..", "é", "x" * 900]


@asset(partitions_def=FILES)
def read(context: AssetExecutionContext) -> str:
    return str(context.partition_key)


@asset
def all_read(read: dict[str, str]) -> bool:
    return sorted(read) == sorted(read.values())


def test_partitions_of_any_name_are_made_and_loaded_each_by_itself_and_together(manager: Any) -> None:
    resources = {"io_manager": manager}
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("files", AWKWARD)
        for key in AWKWARD:
            assert materialize([read], partition_key=key, resources=resources, instance=instance).success

        result = materialize([read, all_read], selection=[all_read], resources=resources, instance=instance)

    assert result.output_for_node("all_read") is True


COLOURS = StaticPartitionsDefinition(["red", "a/b"])
GRID = MultiPartitionsDefinition({"shape": StaticPartitionsDefinition(["b/c", "c"]), "colour": COLOURS})


def test_what_is_shown_of_an_output_is_where_it_lies(manager: Any, s3_url: str) -> None:
    @asset(partitions_def=GRID)
    def grid(context: AssetExecutionContext) -> str:
        return str(context.partition_key)

    keys_of_grid = GRID.get_partition_keys()
    shown = set()
    for key in keys_of_grid:
        result = materialize([grid], partition_key=key, resources={"io_manager": manager})
        (event,) = result.asset_materializations_for_node("grid")
        path = event.metadata["path"].value
        assert isinstance(path, str)
        shown.add(path)
        if "uri" in event.metadata:
            assert event.metadata["uri"].value == f"s3://{BUCKET}/{path}"
            assert S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url).get(path)
        else:
            assert Path(path).is_file()

    assert len(shown) == len(keys_of_grid) == 4


def nested() -> AssetsDefinition:
    keys_of = [["b29"], ["b29", "orders"], ["b29/orders"], ["b29", "orders", "x"], ["b29.pickle"]]

    @multi_asset(outs={f"out_{place}": AssetOut(key=AssetKey(key)) for place, key in enumerate(keys_of)})
    def several():  # type: ignore[no-untyped-def]
        return tuple(range(len(keys_of)))

    return several


@asset(
    ins={
        "one": AssetIn(AssetKey(["b29"])),
        "two": AssetIn(AssetKey(["b29", "orders"])),
        "three": AssetIn(AssetKey(["b29/orders"])),
    }
)
def use_of_them(one: int, two: int, three: int) -> list[int]:
    return [one, two, three]


def test_an_asset_whose_key_begins_with_anothers_has_an_object_of_its_own(manager: Any) -> None:
    result = materialize([nested(), use_of_them], resources={"io_manager": manager})

    assert result.output_for_node("use_of_them") == [0, 1, 2]
    shown = [event.metadata["path"].value for event in result.asset_materializations_for_node("several")]
    assert len(set(shown)) == 5
    assert not [(a, b) for a in shown for b in shown if str(b).startswith(f"{a}/")]


def test_outputs_by_mapping_keys_are_found_by_who_asks_for_each(manager: Any) -> None:
    @op(out=DynamicOut())
    def split() -> Any:
        for number in range(3):
            yield DynamicOutput(number, mapping_key=f"Part_{number}")

    @op
    def double(number: int) -> int:
        return 2 * number

    @op
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @job(resource_defs={"io_manager": manager})
    def doubling() -> None:
        total(split().map(double).collect())

    result = doubling.execute_in_process()

    assert result.output_for_node("total") == 6


# --- the user's own keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "a/../b",
        "./a",
        "a/.",
        "x" * 1025,
        f"a/{'x' * 256}",
        "a\0b",
        "a\ud800",
        "ü" * 200,
    ],
)
def test_a_key_that_a_store_can_not_hold_is_refused_by_both_with_the_reason(
    s3_url: str, tmp_path: Path, key: str
) -> None:
    for store in (LocalObjectStore(folder=str(tmp_path)), S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url)):
        with pytest.raises(InvalidKey, match="The key "):
            store.put(key, b"1")


@pytest.mark.parametrize("key", ["inbox/märz 1.csv", "a+b/c%2fd", "x" * 255, ".hidden", "a...b"])
def test_any_other_key_is_taken_by_both(s3_url: str, tmp_path: Path, key: str) -> None:
    for store in (LocalObjectStore(folder=str(tmp_path)), S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url)):
        store.put(key, b"1")
        assert store.get(key) == b"1"
        assert [entry.key for entry in store.list(key)] == [key]
