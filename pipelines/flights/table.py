"""A flights CSV, checked: each row is used, cancelled or rejected.

DuckDB does the work, because it streams a file of any size through bounded memory on both cores in SQL.
Its CSV reader's reject tables are not used: they take 0.2 ms for each bad value and number records, not
lines. So the rows reach it as numbered text, and SQL casts and judges them.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from dagster import Failure, MetadataValue

from dagster_stack import ObjectNotFound, ObjectStore
from pipelines.flights.outcome import Outcome
from pipelines.flights.schema import COLUMNS, fault_sql, values_sql

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
class CheckedTable:
    """A Parquet file with a row for each row of the CSV object `key`; see `check` for its columns."""

    key: str
    path: Path
    outcome: Outcome
    #: Columns of the CSV that the schema does not know; nothing is done with them.
    extra_columns: list[str]

    def save_rejected(self, store: ObjectStore, version: str = "") -> dict[str, MetadataValue]:
        """Put the rejected rows, if any, into the store as CSV; returns what to show about them."""
        if not self.outcome.rejected:
            return {}
        key = "/".join(filter(None, ("rejected", self.key, version))).removesuffix(".csv") + ".csv"
        target = self.path.with_name("rejected.csv")
        write_rejected(self, target)
        with target.open("rb") as file:
            store.put(key, file, "text/csv; charset=utf-8")
        return {
            "rejected_by_reason": MetadataValue.md(self.outcome.reasons_table()),
            "rejected_rows": MetadataValue.url(store.link(key)),
            "rejected_rows_listed": MetadataValue.int(min(self.outcome.rejected, MOST_LISTED)),
            "rejected_key": MetadataValue.text(key),
        }


def connect(folder: Path) -> "DuckDBPyConnection":
    """A database in memory that spills into `folder`."""
    import duckdb

    database = duckdb.connect(
        config={
            "threads": DUCKDB_THREADS,
            "memory_limit": DUCKDB_MEMORY,
            "temp_directory": str(folder / "spill"),
        }
    )
    # It would fill the step's log.
    database.execute("SET enable_progress_bar = false")
    return database


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
    outcome = read_outcome(result)
    # Counted twice, by Python's reading of the text and by DuckDB's: no row may be lost in between.
    outcome.account_for(rows)
    return CheckedTable(name, result, outcome, [column for column in header if column not in COLUMNS])


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
        raise failure(
            f"not a CSV file: its first line is not UTF-8 text (byte {error.start + 1})."
        ) from error
    if "\0" in text or len(line) == LONGEST_LINE:
        raise failure("not a CSV file: its first line is binary, or longer than 64 KiB.")
    header = [column.strip().lower() for column in next(csv.reader([text]), [])]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        found = ", ".join(header[:30])[:300]
        raise failure(
            f"not a flights table: missing columns: {', '.join(missing)}. Its first line has: {found}"
        )
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
    types = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
    return f"""
        WITH judged AS (
            SELECT *, CASE WHEN malformation IS NULL THEN {fault_sql()} ELSE
                {{'column': '', 'value': '', 'reason': {list(MALFORMATIONS)}[malformation]}} END AS fault
            FROM read_csv(?, auto_detect = false, header = false, delim = '{SEPARATOR.decode()}', quote = '',
                escape = '', nullstr = ['', 'NA'], null_padding = true, max_line_size = {4 * LONGEST_LINE},
                columns = {{'line': 'BIGINT', 'malformation': 'INTEGER', {types}}})
        )
        SELECT line, CASE WHEN fault IS NOT NULL THEN 'rejected' WHEN dep_time IS NULL THEN 'cancelled'
            ELSE 'used' END AS status, fault, {values_sql()}
        FROM judged
    """


def read_outcome(checked: Path) -> Outcome:
    """Where the rows of a checked file went."""
    with connect(checked.parent) as database:
        counts = database.execute(
            """
            SELECT status, concat_ws(': ', nullif(fault.column, ''), fault.reason), count(*)
            FROM read_parquet(?) GROUP BY ALL
            """,
            [str(checked)],
        ).fetchall()
    number = {status: count for status, _, count in counts}
    reasons = {reason: count for status, reason, count in counts if status == "rejected"}
    return Outcome(number.get("used", 0), number.get("cancelled", 0), Counter(reasons))


def write_rejected(table: CheckedTable, target: Path) -> None:
    """Write the rejected rows as CSV: file, line, column, value, reason."""
    query = f"""
        SELECT ? AS file, line, fault.column AS column, left(fault.value, 200) AS value, fault.reason AS reason
        FROM read_parquet(?) WHERE status = 'rejected' LIMIT {MOST_LISTED}
    """
    with connect(target.parent) as database:
        database.sql(query, params=[table.key, str(table.path)]).write_csv(str(target))
