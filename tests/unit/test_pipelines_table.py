"""Bad input of every kind: what is refused as a whole, and what is rejected row by row."""

import csv
import io
from pathlib import Path

import pytest
from dagster import Failure

from pipelines.flights import table
from pipelines.flights.outcome import Outcome
from pipelines.flights.table import checked
from tests.unit.pipelines_data import CANCELLED, DIVERTED, GOOD, HEADER, description, local_store, row, text

KEY = "inbox/a.csv"


def rejected_rows(folder: Path, content: bytes) -> tuple[Outcome, list[dict[str, str]]]:
    """Check a table and read the object with its rejected rows."""
    store = local_store(folder)
    store.put(KEY, content)
    with checked(store, KEY) as result:
        shown = result.save_rejected(store, "v1")
    if not shown:
        return result.outcome, []
    return result.outcome, list(
        csv.DictReader(io.StringIO(store.get("rejected/inbox/a.csv/v1.csv").decode()))
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "empty (0 bytes)", id="empty"),
        pytest.param(b"\n" + text(GOOD), "missing columns: year", id="blank first line"),
        pytest.param(b"PK\x03\x04\x00\xff\xfe\n", "not a CSV file", id="binary"),
        pytest.param(b"abc\0def\n", "not a CSV file", id="NUL bytes"),
        pytest.param(b"x" * 200_000, "not a CSV file", id="one endless line"),
        pytest.param(text(GOOD).decode().encode("utf-16"), "not a CSV file", id="UTF-16"),
        pytest.param(b'{"a": 1}\n', "not a flights table: missing columns: year", id="JSON"),
        pytest.param(text(GOOD).replace(b",", b";"), "missing columns", id="semicolons"),
        pytest.param(
            text().replace(b"carrier", b"airline").replace(b"dest", b"to"),
            "missing columns: carrier, dest.",
            id="two columns missing",
        ),
        pytest.param(text().replace(b"tailnum", b"flight"), "missing columns: tailnum", id="renamed"),
        pytest.param(HEADER.encode() + b",month\n", "columns that appear twice: month", id="column twice"),
    ],
)
def test_a_file_that_is_no_flights_table_fails_with_its_name_and_the_problem(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    # Given an object that is no flights table
    store = local_store(tmp_path)
    store.put(KEY, content)
    # When it is checked
    with pytest.raises(Failure) as caught, checked(store, KEY):
        pass
    # Then the failure names file and problem, and is not retried
    assert problem in description(caught.value)
    assert KEY in description(caught.value)
    assert not caught.value.allow_retries


def test_an_object_that_is_gone_fails_with_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match=r"inbox/gone\.csv: the object is gone"),
        checked(local_store(tmp_path), "inbox/gone.csv"),
    ):
        pass


def test_a_header_without_rows_is_a_table_of_no_rows(tmp_path: Path) -> None:
    assert rejected_rows(tmp_path, HEADER.encode()) == (Outcome(), [])


@pytest.mark.parametrize(
    ("bad", "column", "reason"),
    [
        (row(month="13"), "month", "not between 1 and 12"),
        (row(month="-1"), "month", "not between 1 and 12"),
        (row(month="1.5"), "month", "not a whole number"),
        (row(month="99999999999999"), "month", "not a whole number"),
        (row(dep_delay="soon"), "dep_delay", "not a whole number"),
        (row(month="2", day="30"), "day", "not a day of its month"),
        (row(year=""), "year", "empty"),
        (row(carrier="NA"), "carrier", "empty"),
        (row(origin="New York"), "origin", "not an airport code of 3 letters"),
        (row(distance="-5"), "distance", "not between 1 and 12500"),
        (row(time_hour="yesterday"), "time_hour", "not a time"),
        (row(dep_delay="NA"), "dep_delay", "departed without a departure delay"),
        (DIVERTED, "arr_delay", "departed without an arrival delay: diverted"),
        (row(dep_time="NA"), "dep_time", "arrived without having departed"),
        (HEADER, "year", "not a whole number"),
        ("2013,1", "", table.WRONG_COUNT),
        (GOOD + ",7", "", table.WRONG_COUNT),
        (GOOD.replace("UA", "U\x1fA"), "", table.WRONG_COUNT),
        (GOOD.replace("UA", '"UA'), "", table.OPEN_QUOTE),
        (GOOD.replace("UA", "U\rA"), "", table.CARRIAGE_RETURN),
        (GOOD.replace("UA", "x" * 300_000), "", table.TOO_LONG),
    ],
)
def test_a_bad_row_is_rejected_with_file_line_column_and_reason_and_costs_no_good_one(
    tmp_path: Path, bad: str, column: str, reason: str
) -> None:
    # Given good rows around a blank line and a bad row, which is the file's fourth line
    content = text(GOOD, "", bad, GOOD, CANCELLED)
    # When the table is checked
    outcome, rejected = rejected_rows(tmp_path, content)
    # Then the others are kept, and the object says what is wrong and where
    assert (outcome.used, outcome.cancelled, outcome.rejected) == (2, 1, 1)
    assert len(rejected) == 1
    assert {name: rejected[0][name] for name in ("file", "line", "column", "reason")} == {
        "file": KEY,
        "line": "4",
        "column": column,
        "reason": reason,
    }


def test_bytes_that_are_not_utf8_spoil_only_their_row(tmp_path: Path) -> None:
    outcome, rejected = rejected_rows(tmp_path, text(GOOD, "@", GOOD).replace(b"@", b"\xff" + GOOD.encode()))
    assert outcome.used == 2
    assert [(line["line"], line["reason"]) for line in rejected] == [("3", table.NOT_UTF8)]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbf" + text(GOOD, GOOD), id="byte order mark"),
        pytest.param(text(GOOD, GOOD).replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(text(GOOD + "\r", GOOD), id="both line ends"),
        pytest.param(text(GOOD, GOOD).rstrip(), id="no last line end"),
        pytest.param(text(GOOD, ",".join(f'"{value}"' for value in GOOD.split(","))), id="quoted"),
        pytest.param(
            "\n".join(line + ',"a, b"' for line in text(GOOD, GOOD).decode().split()).encode(),
            id="extra column",
        ),
        pytest.param(text(GOOD, GOOD).upper(), id="upper case header"),
        pytest.param(text(GOOD, row(tailnum="")), id="empty optional value"),
    ],
)
def test_other_spellings_of_the_same_table_are_read(tmp_path: Path, content: bytes) -> None:
    outcome, _ = rejected_rows(tmp_path, content)
    assert outcome == Outcome(used=2)


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    # Given the table with its columns reversed
    lines = [",".join(reversed(line.split(","))) for line in (HEADER, GOOD, row(month="13"))]
    # When it is checked
    outcome, rejected = rejected_rows(tmp_path, "\n".join(lines).encode())
    # Then the bad value is found in its column
    assert outcome.used == 1
    assert [(line["column"], line["value"]) for line in rejected] == [("month", "13")]


def test_rejected_rows_are_listed_in_the_file_s_order_with_the_line_of_each(tmp_path: Path) -> None:
    # Given a table whose every third row is bad
    rows = [row(day="0") if number % 3 == 0 else GOOD for number in range(2, 50_000)]
    # When it is checked
    outcome, rejected = rejected_rows(tmp_path, text(*rows))
    # Then all bad ones are named
    expected = [number for number in range(2, 50_000) if number % 3 == 0]
    assert [int(line["line"]) for line in rejected] == expected
    assert outcome.rejected == len(expected)


def test_an_outcome_that_misses_a_row_is_a_failure() -> None:
    with pytest.raises(Failure, match="11 rows came in, and 10 are accounted for"):
        Outcome(used=8, cancelled=2).account_for(11)
