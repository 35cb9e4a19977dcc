"""The flights as job and as assets, against figures from the raw table by the csv module."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckResult,
    DagsterInstance,
    ExecuteInProcessResult,
    Failure,
    build_op_context,
    materialize,
)

from pipelines import defs
from pipelines.flights import assets, source
from pipelines.flights.delays import WEATHER, Summary, summarize
from pipelines.flights.job import flights, join_months, report
from pipelines.flights.report import publish
from pipelines.flights.table import checked
from tests.unit.pipelines_data import (
    arrived,
    local_resources,
    local_store,
    mean_delay,
    raw_rows,
    raw_weather,
    row,
    text,
)


def metadata(result: ExecuteInProcessResult, step: str) -> Mapping[str, Any]:
    """What a step's output shows in Dagit."""
    events = [event for event in result.events_for_node(step) if event.is_successful_output]
    return {name: value.value for name, value in events[0].step_output_data.metadata.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flights")


@pytest.fixture(scope="module")
def run(folder: Path) -> ExecuteInProcessResult:
    """One run of the job, in this process."""
    return flights.execute_in_process(resources=local_resources(folder))


def year(run: ExecuteInProcessResult) -> Summary:
    summary = run.output_for_node("join_months")
    assert isinstance(summary, Summary)
    return summary


def test_every_row_of_the_year_is_used_cancelled_or_rejected(run: ExecuteInProcessResult) -> None:
    # Given the raw table, sorted by hand
    fate = Counter(
        "cancelled" if line["dep_time"] == "NA" else "used" if arrived(line) else "rejected"
        for line in raw_rows()
    )
    # When the job has run, then its report says the same
    shown = metadata(run, "report")
    assert {name: shown[name] for name in fate} == dict(fate)
    assert shown["rows"] == len(raw_rows()) == source.ROWS


@pytest.mark.parametrize(
    ("dimension", "column"), [("airline", "carrier"), ("month", "month"), ("hour", "hour")]
)
@pytest.mark.parametrize("delay", ["dep_delay", "arr_delay"])
def test_mean_delays_are_those_of_the_raw_table(
    run: ExecuteInProcessResult, dimension: str, column: str, delay: str
) -> None:
    # The job says 2013-02 and 05 where the raw table says 2 and 5.
    spelled: dict[str, Callable[[str], str]] = {
        "airline": str,
        "month": lambda key: str(int(key[5:])),
        "hour": lambda key: str(int(key)),
    }
    totals = {spelled[dimension](key): sums for key, sums in year(run).by(dimension).items() if sums.used}
    means = {
        key: sums.mean_departure_delay if delay == "dep_delay" else sums.mean_arrival_delay
        for key, sums in totals.items()
    }
    assert means == pytest.approx(mean_delay(column, delay))


def test_delays_by_visibility_are_those_of_the_raw_tables_joined(run: ExecuteInProcessResult) -> None:
    # Given each flight beside its weather
    delays = defaultdict(list)
    edges = WEATHER["visibility"].edges
    for line in raw_rows():
        if arrived(line):
            weather = raw_weather().get((line["origin"], line["time_hour"]))
            place = sum(edge <= float(weather["visib"]) for edge in edges) - 1 if weather else "unknown"
            delays[str(place)].append(int(line["dep_delay"]))
    # When the job has run, then its classes are the same
    totals = year(run).by("visibility")
    assert {key: (sums.used, sums.departure_delay) for key, sums in totals.items()} == {
        key: (len(values), sum(values)) for key, values in delays.items()
    }


def test_a_flight_in_an_impossible_wind_counts_as_one_without_wind(tmp_path: Path) -> None:
    # Given a flight in each hour whose measured wind is above 200 mph: the raw table has such
    hours = [
        place for place, weather in raw_weather().items()
        if weather["wind_speed"] != "NA" and float(weather["wind_speed"]) > 200
    ]  # fmt: skip
    assert hours
    store = local_store(tmp_path)
    store.put("a.csv", text(*(row(origin=origin, time_hour=hour) for origin, hour in hours)))
    # When they are added up, then their wind is unknown, and nothing else is
    with checked(store, "a.csv") as table:
        summary = summarize(table.path)
    assert summary.by("wind").keys() == {"unknown"}
    assert "unknown" not in summary.by("rain")


def test_late_and_cancelled_flights_by_day_are_those_of_the_raw_table(run: ExecuteInProcessResult) -> None:
    late: Counter[str] = Counter()
    cancelled: Counter[str] = Counter()
    for line in raw_rows():
        day = f"2013-{int(line['month']):02}-{int(line['day']):02}"
        late[day] += arrived(line) and int(line["dep_delay"]) >= 15
        cancelled[day] += line["dep_time"] == "NA"
    days = year(run).by("day")
    assert {day: sums.late for day, sums in days.items()} == late
    assert {day: sums.cancelled for day, sums in days.items()} == cancelled


def test_each_month_has_its_own_step_and_object(run: ExecuteInProcessResult, folder: Path) -> None:
    rows = Counter(int(line["month"]) for line in raw_rows())
    for month in range(1, 13):
        assert metadata(run, f"month_{month:02}")["rows"] == rows[month]
        table = local_store(folder).get(f"raw/flights/2013-{month:02}.csv")
        assert table.count(b"\n") == rows[month] + 1


def test_the_report_is_a_page_of_its_own_and_a_picture(run: ExecuteInProcessResult, folder: Path) -> None:
    prefix = f"reports/flights/{run.run_id}"
    store = local_store(folder)
    page = store.get(f"{prefix}/report.html").decode()
    assert metadata(run, "report")["report"] == store.link(f"{prefix}/report.html")
    assert "data:image/png;base64," in page
    assert "JetBlue Airways" in page
    assert "http" not in page
    assert store.get(f"{prefix}/report.png").startswith(b"\x89PNG")


def test_the_event_log_is_not_burdened_with_a_large_picture(run: ExecuteInProcessResult) -> None:
    assert len(metadata(run, "report")["picture"]) < 250_000


def test_a_report_over_nothing_still_draws(tmp_path: Path) -> None:
    shown = publish(local_store(tmp_path), Summary(), "reports/x", "Nothing")
    assert shown["rows"].value == 0


def test_a_year_with_a_row_too_few_fails(run: ExecuteInProcessResult) -> None:
    # Given the year's months, of which February has lost a used row
    months = [run.output_for_node(f"month_{month:02}") for month in range(1, 13)]
    february = months[1].outcome
    months[1] = replace(months[1], outcome=replace(february, used=february.used - 1))
    # When they are joined, then it fails with both numbers
    with pytest.raises(Failure, match="336,776 rows came in, and 336,775 are accounted for"):
        join_months(build_op_context(), months)


def test_the_year_has_exactly_twelve_partitions() -> None:
    assert assets.MONTHS.get_partition_keys() == [f"2013-{month:02}-01" for month in range(1, 13)]
    job = defs.resolve_job_def("flights_by_month")
    assert job.partitions_def == assets.MONTHS


def test_a_month_s_run_needs_no_other_run_and_makes_only_its_month(tmp_path: Path) -> None:
    # Given an empty store
    chain = [assets.raw_flights, assets.checked_flights, assets.monthly_delays]
    # When one partition is materialized
    result = materialize(chain, partition_key="2013-02-01", resources=local_resources(tmp_path))
    # Then only February is there, whole
    february = [line for line in raw_rows() if line["month"] == "2"]
    assert result.output_for_node("monthly_delays").outcome.rows == len(february)
    keys = [entry.key for entry in local_store(tmp_path).list("")]
    assert [key for key in keys if not key.startswith("rejected/")] == [
        "checked/flights/2013-02.parquet",
        "raw/flights/2013-02.csv",
    ]


def test_the_asset_check_passes_over_the_year_and_fails_over_a_part(
    tmp_path: Path, run: ExecuteInProcessResult
) -> None:
    whole = assets.delay_report_accounts_for_all_rows(year(run))
    assert isinstance(whole, AssetCheckResult)
    assert whole.passed
    # Given one month of twelve
    instance = DagsterInstance.ephemeral()
    resources = local_resources(tmp_path)
    chain = [assets.raw_flights, assets.checked_flights, assets.monthly_delays]
    materialize(chain, partition_key="2013-02-01", resources=resources, instance=instance)
    # When the report is made
    result = materialize(
        [*assets.ASSETS, assets.delay_report_accounts_for_all_rows],
        selection=[assets.delay_report],
        resources=resources,
        instance=instance,
    )
    # Then there is a report, and the check says that it is not the year
    assert result.success
    assert [check.passed for check in result.get_asset_check_evaluations()] == [False]


def test_the_report_op_is_shared_by_both_jobs() -> None:
    jobs = [defs.resolve_job_def(name) for name in ("flights", "inbox_flights")]
    assert all(job.get_node_named("report").definition is report for job in jobs)
