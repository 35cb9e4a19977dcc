"""Delays added up: sums that can be joined, so that a year is the sum of its months."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dagster import Failure

from pipelines.flights.source import raw_file
from pipelines.flights.table import connect

#: Minutes of departure delay from which a flight counts as late: the US Department of Transportation's.
LATE = 15


@dataclass(frozen=True)
class Scale:
    """Classes of a weather column: each of `edges` begins one, the last is open."""

    column: str
    title: str
    edges: tuple[float, ...]
    labels: tuple[str, ...]

    def sql(self) -> str:
        """The number of a value's class, as text that sorts; `unknown` without a value."""
        place = f"len(list_filter({list(self.edges)}, lambda edge: edge <= {self.column})) - 1"
        return f"CASE WHEN {self.column} IS NULL THEN 'unknown' ELSE ({place})::VARCHAR END"


WEATHER = {
    "wind": Scale(
        "wind_speed",
        "Wind, mph",
        (0, 5, 10, 15, 20, 25, 30),
        ("0–5", "5–10", "10–15", "15–20", "20–25", "25–30", "30+"),
    ),
    "visibility": Scale(
        "visib", "Visibility, miles", (0, 1, 2, 4, 6, 8, 10), ("0–1", "1–2", "2–4", "4–6", "6–8", "8–10", "10")
    ),
    "rain": Scale(
        "precip",
        "Rain or snow, inches an hour",
        (0, 0.01, 0.03, 0.06, 0.1, 0.2),
        ("dry", "0.01–", "0.03–", "0.06–", "0.1–", "0.2+"),
    ),
}

#: What delays are added up by: a name and the SQL of its key.
DIMENSIONS = {
    "airline": "carrier",
    "month": "printf('%04d-%02d', year, month)",
    "day": "printf('%04d-%02d-%02d', year, month, day)",
    "hour": "printf('%02d', hour)",
} | {name: scale.sql() for name, scale in WEATHER.items()}


@dataclass(frozen=True)
class Totals:
    """What some flights add up to. Delays are sums of minutes over the used flights."""

    used: int = 0
    cancelled: int = 0
    late: int = 0
    departure_delay: int = 0
    arrival_delay: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.used + other.used,
            self.cancelled + other.cancelled,
            self.late + other.late,
            self.departure_delay + other.departure_delay,
            self.arrival_delay + other.arrival_delay,
        )

    @property
    def mean_departure_delay(self) -> float:
        return self.departure_delay / self.used if self.used else 0.0

    @property
    def mean_arrival_delay(self) -> float:
        return self.arrival_delay / self.used if self.used else 0.0

    @property
    def late_share(self) -> float:
        return self.late / self.used if self.used else 0.0

    @property
    def cancelled_share(self) -> float:
        return self.cancelled / (self.used + self.cancelled) if self.used + self.cancelled else 0.0


@dataclass(frozen=True)
class Summary:
    """What a table adds up to: where each row went, and the delays of the flights by each dimension."""

    used: int = 0
    cancelled: int = 0
    #: Rejected rows by reason, such as `month: not between 1 and 12`.
    reasons: Counter[str] = field(default_factory=Counter)
    #: By dimension and key, such as `("airline", "UA")`.
    totals: dict[tuple[str, str], Totals] = field(default_factory=dict)

    def __add__(self, other: "Summary") -> "Summary":
        totals = dict(self.totals)
        for key, value in other.totals.items():
            totals[key] = totals.get(key, Totals()) + value
        return Summary(
            self.used + other.used, self.cancelled + other.cancelled, self.reasons + other.reasons, totals
        )

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    @property
    def rows(self) -> int:
        return self.used + self.cancelled + self.rejected

    @property
    def counts(self) -> dict[str, int]:
        """Where the rows went, as metadata."""
        return {
            "rows": self.rows,
            "used": self.used,
            "cancelled": self.cancelled,
            "rejected": self.rejected,
        }

    def by(self, dimension: str) -> dict[str, Totals]:
        """The totals of a dimension, in the order of their keys."""
        return {key: totals for (name, key), totals in sorted(self.totals.items()) if name == dimension}

    def account_for(self, rows: int) -> None:
        """Raise a Failure unless these are all the rows: none lost, none counted twice."""
        if self.rows != rows:
            raise Failure(
                f"{rows:,} rows came in, and {self.rows:,} are accounted for: {self.used:,} used,"
                f" {self.cancelled:,} cancelled, {self.rejected:,} rejected.",
                metadata={"expected": rows, **self.counts},
                allow_retries=False,
            )


def summarize(checked: Path) -> Summary:
    """Add up a file that `table.check` wrote, each flight beside the weather at its airport in its hour."""
    with connect(checked.parent) as database:
        parameters = {"checked": str(checked), "weather": str(raw_file("weather.csv"))}
        statuses = dict(
            database.execute(
                "SELECT status, count(*) FROM read_parquet(?) GROUP BY status", [str(checked)]
            ).fetchall()
        )
        reasons = database.execute(
            """
            SELECT concat_ws(': ', nullif(fault.column, ''), fault.reason), count(*)
            FROM read_parquet(?) WHERE status = 'rejected' GROUP BY ALL
            """,
            [str(checked)],
        ).fetchall()
        totals = database.execute(totals_query(), parameters).fetchall()
    return Summary(
        statuses.get("used", 0),
        statuses.get("cancelled", 0),
        Counter(dict(reasons)),
        {(dimension, key): Totals(*sums) for dimension, key, *sums in totals},
    )


def totals_query() -> str:
    """SQL: dimension, key and the fields of Totals."""
    keys = ", ".join(f"{sql} AS {name}_key" for name, sql in DIMENSIONS.items())
    names = " ".join(f"WHEN grouping({name}_key) = 0 THEN '{name}'" for name in DIMENSIONS)
    key = ", ".join(f"{name}_key" for name in DIMENSIONS)
    sets = ", ".join(f"({name}_key)" for name in DIMENSIONS)
    # The weather file has gusts of 1,048 mph: a wind that no instrument measures is not known.
    return f"""
        WITH weather AS (
            SELECT origin, time_hour, visib, precip,
                CASE WHEN wind_speed < 200 THEN wind_speed END AS wind_speed
            FROM read_csv($weather, nullstr = 'NA', types = {{
                'time_hour': 'TIMESTAMP', 'wind_speed': 'DOUBLE', 'visib': 'DOUBLE', 'precip': 'DOUBLE'}})
        ), flights AS (
            SELECT status = 'used' AS used, dep_delay, arr_delay, {keys}
            FROM read_parquet($checked) AS flight LEFT JOIN weather USING (origin, time_hour)
            WHERE status <> 'rejected'
        )
        SELECT CASE {names} END, COALESCE({key}),
            count(*) FILTER (used), count(*) FILTER (NOT used), count(*) FILTER (used AND dep_delay >= {LATE}),
            COALESCE(sum(dep_delay) FILTER (used), 0)::BIGINT,
            COALESCE(sum(arr_delay) FILTER (used), 0)::BIGINT
        FROM flights GROUP BY GROUPING SETS ({sets})
    """
