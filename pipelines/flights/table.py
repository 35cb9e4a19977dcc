"""The flights' CSV schema: what a good row is, and what is wrong with a bad one.

DuckDB does the work, because it streams a file of any size through bounded memory on both cores in SQL.
Its CSV reader's reject tables are not used: they take 0.2 ms for each bad value and number records, not
lines. So the rows reach it as numbered text, and SQL casts and judges them.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from dagster import Failure

from dagster_stack import ObjectNotFound, ObjectStore

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: For the sorts and hash tables of one step; a worker's container has 1 GB, its /tmp included.
DUCKDB_MEMORY = "256MB"
DUCKDB_THREADS = 2
#: Bytes. A longer line is no flight, and a binary file must not be read as one line of 100 MB.
LONGEST_LINE = 64 * 1024
#: Between the fields of the numbered text: the unit separator, which no sane field contains.
SEPARATOR = b"\x1f"
#: Rejected rows listed one by one; more are counted only, as nobody mends a million rows by hand.
MOST_LISTED = 1_000_000

TOO_LONG = "longer than 64 KiB"
NOT_UTF8 = "not UTF-8"
CARRIAGE_RETURN = "a carriage return inside the row"
OPEN_QUOTE = "a quote is not closed"
WRONG_COUNT = "wrong number of fields"
MALFORMATIONS = (TOO_LONG, NOT_UTF8, CARRIAGE_RETURN, OPEN_QUOTE, WRONG_COUNT)


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int
    required: bool = True

    def problem(self, column: str) -> str:
        """SQL: what is wrong with a value that is not NULL, else NULL."""
        # By pattern, since a cast would round 1.5.
        return f"""CASE WHEN NOT regexp_full_match({column}, '[+-]?[0-9]{{1,9}}') THEN 'not a whole number'
            WHEN {column}::INTEGER NOT BETWEEN {self.low} AND {self.high}
            THEN 'not between {self.low} and {self.high}' END"""

    def value(self, column: str) -> str:
        return f"TRY_CAST({column} AS INTEGER)"


@dataclass(frozen=True)
class Code:
    """A text that matches `pattern` as a whole; `meaning` says so to people."""

    pattern: str
    meaning: str
    required: bool = True

    def problem(self, column: str) -> str:
        """SQL: what is wrong with a value that is not NULL, else NULL."""
        return f"CASE WHEN NOT regexp_full_match({column}, '{self.pattern}') THEN 'not {self.meaning}' END"

    def value(self, column: str) -> str:
        return column


@dataclass(frozen=True)
class Time:
    """An ISO 8601 time, kept as UTC."""

    required: bool = True

    def problem(self, column: str) -> str:
        """SQL: what is wrong with a value that is not NULL, else NULL."""
        return f"CASE WHEN TRY_CAST({column} AS TIMESTAMP) IS NULL THEN 'not a time' END"

    def value(self, column: str) -> str:
        return f"TRY_CAST({column} AS TIMESTAMP)"


AIRPORT = Code("[A-Z]{3}", "an airport code of 3 letters")
CLOCK = Whole(0, 2400)
#: Minutes; below 0 is early. A flight that is off by more than two days is an error of its row.
DELAY = Whole(-1440, 2880, required=False)

#: A cancelled flight has neither times nor delays, so these are not required.
COLUMNS: dict[str, Whole | Code | Time] = {
    "year": Whole(1900, 2100),
    "month": Whole(1, 12),
    "day": Whole(1, 31),
    "dep_time": Whole(0, 2400, required=False),
    "sched_dep_time": CLOCK,
    "dep_delay": DELAY,
    "arr_time": Whole(0, 2400, required=False),
    "sched_arr_time": CLOCK,
    "arr_delay": DELAY,
    "carrier": Code("[A-Z0-9]{2}", "an airline code of 2 characters"),
    "flight": Whole(1, 9999),
    "tailnum": Code("[A-Z0-9]{1,6}", "a tail number", required=False),
    "origin": AIRPORT,
    "dest": AIRPORT,
    "air_time": Whole(1, 1440, required=False),
    "distance": Whole(1, 12_500),
    "hour": Whole(0, 23),
    "minute": Whole(0, 59),
    "time_hour": Time(),
}

#: What no single value shows: condition, the column to name, reason. The first that holds is given.
ROW_RULES = (
    ("TRY_CAST(concat_ws('-', year, month, day) AS DATE) IS NULL", "day", "not a day of its month"),
    ("dep_time IS NOT NULL AND dep_delay IS NULL", "dep_delay", "departed without a departure delay"),
    ("dep_time IS NOT NULL AND arr_delay IS NULL", "arr_delay", "departed without an arrival delay: diverted"),
    ("dep_time IS NULL AND arr_delay IS NOT NULL", "dep_time", "arrived without having departed"),
)


@dataclass(frozen=True)
class CheckedTable:
    """A Parquet file with a row for each row of a CSV, used or not; see `check` for its columns."""

    path: Path
    #: As counted while reading the text, so that DuckDB's own counts can be compared with it.
    rows: int
    extra_columns: list[str]


def connect(folder: Path) -> "DuckDBPyConnection":
    """A database in memory that spills into `folder`."""
    import duckdb

    return duckdb.connect(
        config={
            "threads": DUCKDB_THREADS,
            "memory_limit": DUCKDB_MEMORY,
            "temp_directory": str(folder / "spill"),
        }
    )


@contextmanager
def checked(store: ObjectStore, key: str) -> Iterator[CheckedTable]:
    """Check the CSV object `key`; the result's file is gone when the block ends."""
    try:
        with store.opened(key) as file, TemporaryDirectory() as folder:
            yield check(file, key, Path(folder))
    except ObjectNotFound as error:
        raise Failure(f"{key}: the object is gone. {error}", allow_retries=False) from error


def check(file: IO[bytes], name: str, folder: Path) -> CheckedTable:
    """Judge each row of a CSV file: a Failure when it is no flights table, else a file in `folder`.

    Its columns are those of the schema and `line` (the first is 1), `status` (used, cancelled, rejected)
    and for rejected rows `fault`: the first bad column with its value and the reason.
    """
    header = read_header(file, name)
    text, result = folder / "numbered.txt", folder / "checked.parquet"
    with text.open("wb") as target:
        rows = write_numbered(file, target, len(header))
    with connect(folder) as database:
        database.sql(check_query(header), params=[str(text)]).write_parquet(str(result))
    text.unlink()
    return CheckedTable(result, rows, [column for column in header if column not in COLUMNS])


def read_header(file: IO[bytes], name: str) -> list[str]:
    """The column names in lower case; a Failure when they can't be those of a flights table."""

    def failure(problem: str) -> Failure:
        return Failure(f"{name}: {problem}", metadata={"file": name}, allow_retries=False)

    line = file.readline(LONGEST_LINE)
    if not line:
        raise failure("the file is empty (0 bytes).")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise failure(f"not a CSV file: its first line is not UTF-8 text (byte {error.start + 1}).") from error
    if "\0" in text or len(line) == LONGEST_LINE:
        raise failure("not a CSV file: its first line is binary, or longer than 64 KiB.")
    header = [column.strip().lower() for column in next(csv.reader([text]), [])]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        found = ", ".join(header[:30])[:300]
        raise failure(f"not a flights table: missing columns: {', '.join(missing)}. Its first line has: {found}")
    twice = sorted({column for column in header if column in COLUMNS and header.count(column) > 1})
    if twice:
        raise failure(f"columns that appear twice: {', '.join(twice)}.")
    return header


def write_numbered(file: IO[bytes], target: IO[bytes], fields: int) -> int:
    """Write the rows after the header as `line, malformation, fields…`, and return how many they are.

    A row is a line: no field of this schema may contain a line break, so an unclosed quote spoils
    its own row only and not all that follow. Blank lines are no rows.
    """
    rows = 0
    for number, line in enumerate(read_lines(file), start=2):
        text = line.rstrip(b"\r\n")
        if not text:
            continue
        rows += 1
        problem = ""
        if len(text) > LONGEST_LINE:
            problem = TOO_LONG
        elif not is_utf8(text):
            problem = NOT_UTF8
        elif b"\r" in text:
            problem = CARRIAGE_RETURN
        elif b'"' in text:
            if text.count(b'"') % 2:
                problem = OPEN_QUOTE
            text = SEPARATOR.join(field.encode() for field in next(csv.reader([text.decode()])))
        else:
            text = text.replace(b",", SEPARATOR)
        if not problem and text.count(SEPARATOR) != fields - 1:
            problem = WRONG_COUNT
        if problem:
            # By its number: a file of short bad lines must not become a much larger one.
            target.write(b"%d%b%d\n" % (number, SEPARATOR, MALFORMATIONS.index(problem) + 1))
        else:
            target.write(b"%d%b%b\n" % (number, 2 * SEPARATOR, text))
    return rows


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, of which no more than one byte over LONGEST_LINE is kept."""
    for line in iter(partial(file.readline, LONGEST_LINE + 1), b""):
        rest = line
        while len(rest) == LONGEST_LINE + 1 and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield line


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_query(header: list[str]) -> str:
    """SQL over the numbered text, whose path is its parameter."""
    # A column that the schema does not know gets a name of ours: theirs may be anything.
    names = [name if name in COLUMNS else f"extra_{place}" for place, name in enumerate(header)]
    types = ", ".join(f"'{name}': 'VARCHAR'" for name in ["malformation", *names])
    faults = [
        f"""CASE WHEN malformation IS NOT NULL
            THEN {{'column': '', 'value': '', 'reason': {list(MALFORMATIONS)}[malformation::INTEGER]}} END"""
    ]
    for name, kind in COLUMNS.items():
        problem = f"CASE WHEN {name} IS NULL THEN 'empty' ELSE {kind.problem(name)} END"
        if not kind.required:
            problem = kind.problem(name)
        faults.append(fault(name, problem))
    faults += [
        fault(column, f"CASE WHEN {condition} THEN '{reason}' END") for condition, column, reason in ROW_RULES
    ]
    values = ", ".join(f"{kind.value(name)} AS {name}" for name, kind in COLUMNS.items())
    return f"""
        WITH judged AS (
            SELECT *, COALESCE({", ".join(faults)}) AS fault
            FROM read_csv(?, auto_detect = false, header = false, delim = '{SEPARATOR.decode()}', quote = '',
                escape = '', nullstr = ['', 'NA'], null_padding = true, max_line_size = {4 * LONGEST_LINE},
                columns = {{'line': 'BIGINT', {types}}})
        )
        SELECT line, CASE WHEN fault IS NOT NULL THEN 'rejected' WHEN dep_time IS NULL THEN 'cancelled'
            ELSE 'used' END AS status, fault, {values}
        FROM judged
    """


def fault(column: str, problem: str) -> str:
    """SQL: the fault of a column when `problem` is not NULL, else NULL."""
    return f"""CASE WHEN ({problem}) IS NOT NULL
        THEN {{'column': '{column}', 'value': COALESCE({column}, ''), 'reason': {problem}}} END"""


def write_rejected(table: CheckedTable, name: str, target: Path) -> None:
    """Write the rejected rows of the CSV file `name` as CSV: file, line, column, value, reason."""
    with connect(target.parent) as database:
        query = f"""
            SELECT ? AS file, line, fault.column AS column, left(fault.value, 200) AS value,
                fault.reason AS reason
            FROM read_parquet(?) WHERE status = 'rejected' LIMIT {MOST_LISTED}
        """
        database.sql(query, params=[name, str(table.path)]).write_csv(str(target))


def rejected_key(key: str, version: str) -> str:
    """Where the rejected rows of a version of the object `key` lie."""
    return f"rejected/{key}/{re.sub(r'[^0-9A-Za-z_-]', '_', version)}.csv"
