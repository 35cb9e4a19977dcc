"""The example on real data: its figures, found by other means, and its report."""

import re
from html import unescape
from urllib.parse import urlsplit

import pytest
import requests

from tests.stack import raw_flights, runs
from tests.stack.conftest import Command
from tests.stack.raw_flights import Figures
from tests.stack.stack import Stack


@pytest.fixture(scope="module")
def table() -> str:
    return raw_flights.raw_table()


@pytest.fixture(scope="module")
def year(table: str) -> Figures:
    return raw_flights.figures(table)


@pytest.fixture(scope="module")
def page(stack: Stack, flights_run: Command) -> str:
    """The report as a browser gets it: through the link, without keys."""
    response = requests.get(stack.metadata(flights_run.run_id, "report")["report"], timeout=30)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    response.encoding = "utf-8"
    return response.text


def report_table(page: str, title: str) -> dict[str, list[str]]:
    """A table of the report: the cells of each row by its first one."""
    body = re.search(rf"<h2>{re.escape(title)}</h2>\s*<table>(.*?)</table>", page, re.DOTALL)
    assert body, f"no table {title!r}"
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body[1], re.DOTALL)]
    return {unescape(row[0]): [unescape(cell) for cell in row[1:]] for row in rows if row}


def delay_cells(figures: Figures, key: str) -> list[str]:
    """Flown, mean departure delay, share of the late, share of the cancelled: as the report writes them."""
    flown, cancelled = figures.flown[key], figures.not_flown[key]
    mean = figures.departure_delay[key] / flown if flown else 0
    late = figures.late[key] / flown if flown else 0
    return [f"{flown:,}", f"{mean:.1f}", f"{late:.1%}", f"{cancelled / (flown + cancelled):.1%}"]


def test_every_row_is_used_cancelled_or_rejected(stack: Stack, flights_run: Command, year: Figures) -> None:
    # Given a finished run of flights
    assert stack.run(flights_run.run_id)["status"] == "SUCCESS"

    # When the report's numbers are read in Dagit
    metadata = stack.metadata(flights_run.run_id, "report")

    # Then they are those of the raw table, and none of its rows is missing
    assert {name: metadata[name] for name in ("rows", "used", "cancelled", "rejected")} == year.counts()
    assert metadata["used"] + metadata["cancelled"] + metadata["rejected"] == 336_776


def test_each_month_is_a_step_of_its_own_with_its_own_figures(
    stack: Stack, flights_run: Command, table: str
) -> None:
    # Given a finished run of flights
    for month, figures in raw_flights.by_month(table):
        # When a month's step is looked at
        metadata = stack.metadata(flights_run.run_id, f"month_{month[5:]}")

        # Then its numbers are those of the month
        assert {name: metadata[name] for name in figures.counts()} == figures.counts(), month


def test_months_run_on_both_workers_at_the_same_time(stack: Stack, flights_run: Command) -> None:
    # Given a finished run of flights on two workers
    months = runs.spans(stack, flights_run.run_id, "month_")
    executed = runs.workers(stack, flights_run.run_id)

    # When the months' times are laid side by side
    pairs = [
        (first, second)
        for first, (_, first_end) in months.items()
        for second, (second_start, _) in months.items()
        if months[first][0] < second_start < first_end
    ]

    # Then some overlap, on different workers
    assert len(months) == 12
    assert any(executed[first] != executed[second] for first, second in pairs), months


def test_the_reports_tables_hold_the_figures_of_the_raw_table(page: str, year: Figures) -> None:
    # Given the report and figures found with Python's csv module
    names = raw_flights.airlines()
    expected = {
        "Airline": {names[code]: delay_cells(year, code) for code in names if year.flown[code]},
        "Month": {f"2013-{month:02}": delay_cells(year, f"2013-{month:02}") for month in range(1, 13)},
        "Scheduled hour": {
            f"{hour:02}": delay_cells(year, f"hour {hour:02}")
            for hour in range(24)
            if year.flown[f"hour {hour:02}"] + year.not_flown[f"hour {hour:02}"]
        },
    }

    # When its tables are read
    for title, rows in expected.items():
        found = report_table(page, title)

        # Then each cell is the same; the arrival's mean, which has no counterpart, is left out
        assert {key: [row[0], row[1], row[3], row[4]] for key, row in found.items()} == rows, title


def test_the_report_accounts_for_the_rows_by_reason(page: str, year: Figures) -> None:
    # Given the report
    rows = {key: int(cells[0].replace(",", "")) for key, cells in report_table(page, "Rows").items()}

    # When its reasons for rejection are added up
    rejected = sum(count for key, count in rows.items() if key.startswith("rejected, "))

    # Then they are the rejected rows, and the lines add up to all
    assert rejected == year.rejected
    assert rows["used"] + rows["cancelled"] + rejected == rows["all"] == year.rows


def test_report_and_picture_are_objects_in_the_bucket(stack: Stack, flights_run: Command) -> None:
    # Given a finished run of flights
    metadata = stack.metadata(flights_run.run_id, "report")

    # When the bucket is listed with root's keys
    prefix = f"reports/flights/{flights_run.run_id}"
    listed = stack.s3_root.list_objects_v2(Bucket=stack.bucket, Prefix=prefix)["Contents"]

    # Then both are there, and the metadata says where
    assert {entry["Key"] for entry in listed} == {f"{prefix}/report.html", f"{prefix}/report.png"}
    assert metadata["objects"] == f"s3://{stack.bucket}/{prefix}"


def test_the_picture_opens_through_its_link_from_this_host(stack: Stack, flights_run: Command) -> None:
    # Given the picture's link in Dagit
    link = stack.metadata(flights_run.run_id, "report")["image"]
    assert urlsplit(link).netloc == f"127.0.0.1:{stack.settings['MINIO_PORT']}"

    # When it is opened without keys
    response = requests.get(link, timeout=30)

    # Then it is a PNG; without its signature the address gives nothing
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "image/png"
    assert response.content.startswith(b"\x89PNG\r\n")
    assert requests.get(link.split("?")[0], timeout=30).status_code == 403


def test_dagit_shows_picture_and_tables_with_the_run(stack: Stack, flights_run: Command) -> None:
    # Given a finished run of flights
    # When the report's metadata is read in Dagit
    metadata = stack.metadata(flights_run.run_id, "report")

    # Then it holds the picture itself and the tables
    assert metadata["picture"].startswith("![Delays](data:image/png;base64,iVBOR")
    assert "### Airline" in metadata["tables"]
    assert "United Air Lines Inc." in metadata["tables"]


def test_rejected_rows_are_named_by_file_line_and_reason(
    stack: Stack, flights_run: Command, table: str
) -> None:
    # Given a month with rows that were rejected
    (key,) = [key for key in stack.keys("rejected/raw/flights/") if "2013-02" in key]
    month = dict(raw_flights.by_month(table))["2013-02"]

    # When the list of them is read from the bucket
    lines = stack.s3.get_object(Bucket=stack.bucket, Key=key)["Body"].read().decode().splitlines()

    # Then it has one line for each, beside the raw object's name
    assert lines[0] == "file,line,column,value,reason"
    assert len(lines) - 1 == month.rejected
    assert all(line.startswith("raw/flights/2013-02.csv,") for line in lines[1:])
