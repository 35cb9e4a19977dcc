"""The report: the same tables and picture as Dagit metadata and as a page that stands alone."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dagster import MetadataValue

from dagster_stack import ObjectStore
from pipelines.flights.delays import LATE, WEATHER, Summary, Totals
from pipelines.flights.picture import draw
from pipelines.flights.source import airline_names

#: For the copy inside Dagit's metadata, which is kept in the event log.
PREVIEW_DPI = 75

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
img { width: 100%; height: auto }
table { border-collapse: collapse; margin: 0 0 2rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e8ec; text-align: right }
th:first-child, td:first-child { text-align: left }
th { color: #6b7a87; font-weight: 600 }
"""


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; all columns but the first hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.header, ("---", *["--:"] * (len(self.header) - 1)), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in self.rows
        )
        return f"<h2>{escape(self.title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>"


def publish(store: ObjectStore, summary: Summary, prefix: str, title: str) -> Mapping[str, MetadataValue]:
    """Put `report.html` and `report.png` under `prefix`; returns the report as metadata."""
    picture = draw(summary)
    tables = report_tables(summary)
    store.put(f"{prefix}/report.png", picture, "image/png")
    store.put(f"{prefix}/report.html", page(title, tables, picture).encode(), "text/html; charset=utf-8")
    preview = b64encode(draw(summary, PREVIEW_DPI)).decode()
    return {
        **{name: MetadataValue.int(count) for name, count in summary.outcome.counts().items()},
        "report": MetadataValue.url(store.link(f"{prefix}/report.html")),
        "image": MetadataValue.url(store.link(f"{prefix}/report.png")),
        "objects": MetadataValue.text(store.uri(prefix)),
        "picture": MetadataValue.md(f"![Delays](data:image/png;base64,{preview})"),
        "tables": MetadataValue.md("\n\n".join(table.markdown() for table in tables)),
    }


def page(title: str, tables: list[Table], picture: bytes) -> str:
    """A HTML page that needs no other file."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1>
<img alt="Mean departure delays" src="data:image/png;base64,{b64encode(picture).decode()}">
{"".join(table.html() for table in tables)}
</body></html>
"""


def report_tables(summary: Summary) -> list[Table]:
    """What became of the rows, and the delays by airline, month, hour and weather."""
    outcome = summary.outcome
    rows = [("used", f"{outcome.used:,}"), ("cancelled", f"{outcome.cancelled:,}")]
    rows += [(f"rejected, {reason}", f"{count:,}") for reason, count in outcome.reasons.most_common()]
    names = airline_names()
    return [
        Table("Rows", ("what became of it", "rows"), [*rows, ("all", f"{outcome.rows:,}")]),
        delay_table("Airline", {names.get(code, code): sums for code, sums in summary.by("airline").items()}),
        delay_table("Month", summary.by("month")),
        delay_table("Scheduled hour", summary.by("hour")),
        *(
            delay_table(scale.title, {scale.label(key): sums for key, sums in summary.by(name).items()})
            for name, scale in WEATHER.items()
        ),
    ]


def delay_table(title: str, totals: Mapping[str, Totals]) -> Table:
    """A row for each key: how many flew, how late, how many did not fly."""
    header = (title, "flown", "departure, min", "arrival, min", f"{LATE} min late or more", "cancelled")
    rows = [
        (
            key,
            f"{sums.used:,}",
            f"{sums.mean_departure_delay:.1f}",
            f"{sums.mean_arrival_delay:.1f}",
            f"{sums.late_share:.1%}",
            f"{sums.cancelled_share:.1%}",
        )
        for key, sums in totals.items()
    ]
    return Table(title, header, rows)
