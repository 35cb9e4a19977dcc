"""Delays added up: sums that can be joined, so that a year is the sum of its months."""

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.flights.outcome import Outcome
from pipelines.flights.source import raw_file
from pipelines.flights.table import connect, read_outcome

#: Minutes of departure delay from which a flight counts as late: the US Department of Transportation's.
LATE = 15


#: The key of flights for whose hour there is no weather.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Scale:
    """Classes of a weather column: each of `edges` begins one, the last is open."""

    column: str
    title: str
    edges: tuple[float, ...]
    labels: tuple[str, ...]

    def label(self, key: str) -> str:
        """The name of the class that `sql` calls `key`."""
        return key if key == UNKNOWN else self.labels[int(key)]

    def sql(self) -> str:
        """The number of a value's class, as text that sorts; `unknown` without a value."""
        place = f"len(list_filter({list(self.edges)}, lambda edge: edge <= {self.column})) - 1"
        return f"CASE WHEN {self.column} IS NULL THEN '{UNKNOWN}' ELSE ({place})::VARCHAR END"


WEATHER = {
    "wind": Scale(
        "wind_speed",
        "Wind, mph",
        (0, 5, 10, 15, 20, 25, 30),
        ("0–5", "5–10", "10–15", "15–20", "20–25", "25–30", "30+"),
    ),
    "visibility": Scale(
        "visib",
        "Visibility, miles",
        (0, 1, 2, 4, 6, 8, 10),
        ("0–1", "1–2", "2–4", "4–6", "6–8", "8–10", "10"),
    ),
    "rain": Scale(
        "precip",
        "Rain or snow, inches an hour",
        (0, 0.01, 0.03, 0.06, 0.1, 0.2),
        ("dry", "<0.03", "<0.06", "<0.1", "<0.2", "0.2+"),
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
    """What a table adds up to: where its rows went, and its flights' delays by each dimension."""

    outcome: Outcome = field(default_factory=Outcome)
    #: By dimension and key, such as `("airline", "UA")`.
    totals: dict[tuple[str, str], Totals] = field(default_factory=dict)

    def __add__(self, other: "Summary") -> "Summary":
        totals = dict(self.totals)
        for key, value in other.totals.items():
            totals[key] = totals.get(key, Totals()) + value
        return Summary(self.outcome + other.outcome, totals)

    def by(self, dimension: str) -> dict[str, Totals]:
        """The totals of a dimension, in the order of their keys."""
        return {key: totals for (name, key), totals in sorted(self.totals.items()) if name == dimension}


def summarize(checked: Path) -> Summary:
    """Add up a file that `table.check` wrote, each flight beside the weather at its airport in its hour."""
    with connect(checked.parent) as database:
        parameters = {"checked": str(checked), "weather": str(raw_file("weather.csv"))}
        totals = database.execute(totals_query(), parameters).fetchall()
    return Summary(
        read_outcome(checked), {(dimension, key): Totals(*sums) for dimension, key, *sums in totals}
    )


def totals_query() -> str:
    """SQL: dimension, key and the fields of Totals."""
    keys = ", ".join(f"{sql} AS {name}_key" for name, sql in DIMENSIONS.items())
    names = " ".join(f"WHEN grouping({name}_key) = 0 THEN '{name}'" for name in DIMENSIONS)
    key = ", ".join(f"{name}_key" for name in DIMENSIONS)
    sets = ", ".join(f"({name}_key)" for name in DIMENSIONS)
    # The weather file has one wind of 1,048 mph: such a wind is as good as unknown.
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
