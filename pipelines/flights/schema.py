"""What each column of a flights table must hold, and the SQL that judges a row by it."""

from dataclasses import dataclass


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
    (
        "dep_time IS NOT NULL AND arr_delay IS NULL",
        "arr_delay",
        "departed without an arrival delay: diverted",
    ),
    ("dep_time IS NULL AND arr_delay IS NOT NULL", "dep_time", "arrived without having departed"),
)


def fault_sql() -> str:
    """SQL over text columns: the first fault of a row as {column, value, reason}, NULL for a good row."""
    faults = []
    for name, kind in COLUMNS.items():
        problem = kind.problem(name)
        if kind.required:
            problem = f"CASE WHEN {name} IS NULL THEN 'empty' ELSE {problem} END"
        faults.append(column_fault(name, problem))
    for condition, column, reason in ROW_RULES:
        faults.append(column_fault(column, f"CASE WHEN {condition} THEN '{reason}' END"))
    return f"COALESCE({', '.join(faults)})"


def column_fault(column: str, problem: str) -> str:
    """SQL: the fault of a column when `problem` is not NULL, else NULL."""
    return f"""CASE WHEN ({problem}) IS NOT NULL
        THEN {{'column': '{column}', 'value': COALESCE({column}, ''), 'reason': {problem}}} END"""


def values_sql() -> str:
    """SQL: the columns with their types, NULL where a value has not its type."""
    return ", ".join(f"{kind.value(name)} AS {name}" for name, kind in COLUMNS.items())
