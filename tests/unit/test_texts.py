"""What user code may say in an event, and what of it is stored."""

import json
from typing import Any

import pytest
from dagster import (
    AssetMaterialization,
    FloatMetadataValue,
    IntMetadataValue,
    JsonMetadataValue,
    MarkdownMetadataValue,
    MetadataValue,
    TableMetadataValue,
    TableRecord,
    TextMetadataValue,
)
from dagster._serdes import deserialize_value, serialize_value

from dagster_stack.texts import MOST_EVENT, MOST_TEXT, MOST_VALUE, cut, presentable, shown


def stored(**metadata: Any) -> dict[str, Any]:
    """The metadata of an event that was serialised, mended and read again."""
    event = AssetMaterialization("a", metadata=metadata)
    return dict(deserialize_value(presentable(serialize_value(event)), AssetMaterialization).metadata)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("ünïcode 😀 \n\t", "ünïcode 😀 \n\t"),
        ("file\udcff.csv", "file\\udcff.csv"),
        ("a\0b", "a␀b"),
        ("\ud83d", "\\ud83d"),
        ("", ""),
    ],
)
def test_what_can_not_be_stored_is_replaced_visibly(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert json.loads(presentable(json.dumps({"message": text}))) == {"message": expected}


def test_an_ordinary_event_is_the_very_same() -> None:
    for text in ("plain", "ünïcode", "a path C:\\users", "NULL"):
        event = json.dumps({"message": text})
        assert presentable(event) is event


def test_words_that_look_like_something_else_stay() -> None:
    """A backslash before a `u`, the word NaN, an emoji."""
    for text in ("\\udcff", "\\\\u0000", "NaN", "Infinity and 😀"):
        assert json.loads(presentable(json.dumps({"message": text}))) == {"message": text}


def test_labels_and_values_of_every_kind_are_mended() -> None:
    found = stored(
        **{"a\udcff": 1},
        text="x\0",
        path=MetadataValue.path("/x\udcff"),
        url=MetadataValue.url("http://x/\udcff"),
        md=MetadataValue.md("\udcff"),
        json=MetadataValue.json({"k\0": ["\udcff", {"deep": "\0"}]}),
        table=MetadataValue.table([TableRecord({"name": "\udcff"})]),
    )

    assert found["a\\udcff"] == IntMetadataValue(1)
    assert found["text"] == TextMetadataValue("x␀")
    assert found["path"].value == "/x\\udcff"
    assert found["url"].value == "http://x/\\udcff"
    assert found["md"].value == "\\udcff"
    assert found["json"].value == {"k␀": ["\\udcff", {"deep": "␀"}]}
    assert found["table"].records == [TableRecord({"name": "\\udcff"})]


def test_numbers_that_json_does_not_know_are_texts_where_dagit_reads_json() -> None:
    nan, endless = float("nan"), float("-inf")

    found = stored(
        json=MetadataValue.json({"loss": [nan, 1.5, endless]}),
        table=MetadataValue.table([TableRecord({"loss": nan})]),
        number=nan,
        time=MetadataValue.timestamp(float("inf")),
        large=10**30,
    )

    assert found["json"].value == {"loss": ["nan", 1.5, "-inf"]}
    assert found["table"].records[0].data == {"loss": "nan"}
    # Dagster shows that one by itself.
    assert isinstance(found["number"], FloatMetadataValue)
    assert found["time"] == TextMetadataValue("inf")
    assert found["large"] == IntMetadataValue(10**30)


def test_what_is_too_long_is_cut_with_its_length() -> None:
    text = "x" * (MOST_TEXT + 100)

    message = json.loads(presentable(json.dumps({"message": text})))["message"]

    assert message == "x" * MOST_TEXT + f"… [cut: {MOST_TEXT:,} of {MOST_TEXT + 100:,} characters]"
    assert cut("short", 10) == "short"
    assert cut(message, MOST_TEXT) == message


def test_a_metadata_value_may_be_longer_as_a_picture_is() -> None:
    picture, longer = "p" * (MOST_VALUE - 10), "p" * (MOST_VALUE + 100)

    found = stored(picture=MetadataValue.md(picture), longer=MetadataValue.md(longer))

    assert found["picture"] == MarkdownMetadataValue(picture)
    assert len(found["longer"].value) < MOST_VALUE + 100
    assert found["longer"].value.endswith(f"of {MOST_VALUE + 100:,} characters]")


def test_json_and_tables_that_are_too_long_become_a_text_that_says_so() -> None:
    rows = [TableRecord({"number": number, "text": "x" * 90}) for number in range(20_000)]

    found = stored(
        small=MetadataValue.json([1]),
        json=MetadataValue.json({"numbers": list(range(400_000))}),
        table=MetadataValue.table(rows),
    )

    assert found["small"] == JsonMetadataValue([1])
    assert found["json"].value.startswith("[cut: Json of 3,088,9")
    assert '{"numbers": [0, 1,' in found["json"].value
    assert not isinstance(found["table"], TableMetadataValue)
    assert "[cut: Table of" in found["table"].value


@pytest.mark.parametrize(
    "metadata",
    [
        {str(number): "m" * 900_000 for number in range(20)},
        {str(number): "m" for number in range(60_000)},
        {str(number): "ü" * 100_000 for number in range(100)},
        {"x" * 3_000_000: 1, "y": ["z" * 2_000_000] * 10},
    ],
)
def test_an_event_as_a_whole_has_a_limit(metadata: dict[str, Any]) -> None:
    event = serialize_value(AssetMaterialization("a", metadata=metadata))

    mended = presentable(event)

    assert len(mended) <= MOST_EVENT
    assert deserialize_value(mended, AssetMaterialization).metadata


def test_what_is_deep_is_mended_too() -> None:
    deep: Any = "\udcff"
    for _ in range(300):
        deep = [deep]

    value = stored(deep=MetadataValue.json(deep))["deep"].value

    for _ in range(300):
        (value,) = value
    assert value == "\\udcff"


def test_the_key_of_an_asset_stays_what_it_is_found_by() -> None:
    event = serialize_value(AssetMaterialization(["a\udcff"], description="\udcff"))

    mended = deserialize_value(presentable(event), AssetMaterialization)

    assert mended.asset_key.path == ["a\udcff"]
    assert mended.description == "\\udcff"
