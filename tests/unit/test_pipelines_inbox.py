"""The sensor's once and only once, and the job that it starts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    ExecuteInProcessResult,
    Failure,
    RunConfig,
    SensorResult,
    build_sensor_context,
)

from pipelines.flights import inbox as module
from pipelines.flights.inbox import InboxFile, inbox, inbox_flights
from tests.unit.pipelines_data import GOOD, HEADER, local_resources, local_store, row, text


def tick(folder: Path, cursor: str | None = None) -> tuple[list[str], str | None]:
    """One tick: the run keys that it asks for, and the cursor that it leaves."""
    with DagsterInstance.ephemeral() as instance:
        context = build_sensor_context(
            instance=instance, cursor=cursor, resources={"store": local_store(folder)}
        )
        result = inbox(context)
    assert isinstance(result, SensorResult)
    return [str(request.run_key) for request in result.run_requests or []], result.cursor


def take(folder: Path, key: str, **changes: Any) -> ExecuteInProcessResult:
    """Run the job on an object of the store, as the sensor would."""
    etag = next((entry.etag for entry in local_store(folder).list(key)), "unknown")
    config = RunConfig({"take_file": InboxFile(**{"key": key, "etag": etag} | changes)})
    return inbox_flights.execute_in_process(run_config=config, resources=local_resources(folder))


def test_an_object_is_asked_for_once(tmp_path: Path) -> None:
    # Given an object in the inbox and one elsewhere
    local_store(tmp_path).put("inbox/a.csv", text(GOOD))
    local_store(tmp_path).put("elsewhere/b.csv", text(GOOD))
    # When the sensor ticks twice
    first, cursor = tick(tmp_path)
    second, _ = tick(tmp_path, cursor)
    # Then only the first tick asks, for the one in the inbox
    assert [key.rsplit(":", 1)[0] for key in first] == ["inbox/a.csv"]
    assert second == []


def test_a_changed_object_is_asked_for_again_under_another_run_key(tmp_path: Path) -> None:
    # Given an object that was taken
    local_store(tmp_path).put("inbox/a.csv", text(GOOD))
    first, cursor = tick(tmp_path)
    # When it changes
    local_store(tmp_path).put("inbox/a.csv", text(GOOD, GOOD))
    second, _ = tick(tmp_path, cursor)
    # Then it is new work
    assert len(second) == 1
    assert second != first


def test_after_a_cursor_reset_the_same_run_key_is_asked_for_which_dagster_skips(tmp_path: Path) -> None:
    local_store(tmp_path).put("inbox/a.csv", text(GOOD))
    first, _ = tick(tmp_path)
    again, _ = tick(tmp_path, cursor=None)
    assert again == first


def test_many_objects_are_all_asked_for_once_over_several_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more objects than a tick may ask for
    monkeypatch.setattr(module, "MOST_RUNS_PER_TICK", 2)
    for name in "abcde":
        local_store(tmp_path).put(f"inbox/{name}.csv", text(GOOD))
    # When the sensor ticks until it is done
    asked: list[str] = []
    cursor = None
    for _ in range(4):
        keys, cursor = tick(tmp_path, cursor)
        asked += keys
    # Then each was asked for once
    assert [key[:11] for key in asked] == [f"inbox/{name}.csv" for name in "abcde"]


def test_the_sensor_s_config_starts_the_job(tmp_path: Path) -> None:
    # Given what the sensor asks for
    local_store(tmp_path).put("inbox/a.csv", text(GOOD))
    with DagsterInstance.ephemeral() as instance:
        context = build_sensor_context(instance=instance, resources={"store": local_store(tmp_path)})
        result = inbox(context)
    assert isinstance(result, SensorResult)
    assert result.run_requests
    # When the job runs with it, then it succeeds
    config = result.run_requests[0].run_config
    assert inbox_flights.execute_in_process(run_config=config, resources=local_resources(tmp_path)).success


def test_good_rows_are_added_up_and_bad_ones_kept_in_an_object(tmp_path: Path) -> None:
    # Given a file with two good rows and a bad one
    store = local_store(tmp_path)
    store.put("inbox/a.csv", text(GOOD, row(month="13"), row(dep_delay="8")))
    etag = next(store.list("inbox/a.csv")).etag
    # When it is taken
    result = take(tmp_path, "inbox/a.csv")
    # Then the good ones count, and the bad one is found under the file's name and version
    summary = result.output_for_node("take_file")
    assert summary.totals["airline", "UA"].departure_delay == 2 + 8
    assert summary.outcome.counts() == {"rows": 3, "used": 2, "cancelled": 0, "rejected": 1}
    assert b"inbox/a.csv,3,month,13,not between 1 and 12" in store.get(f"rejected/inbox/a.csv/{etag}.csv")
    # And there is a report of it
    assert store.get(f"reports/inbox_flights/{result.run_id}/report.html")


def test_a_file_without_rows_succeeds_with_none(tmp_path: Path) -> None:
    local_store(tmp_path).put("inbox/a.csv", HEADER.encode())
    assert take(tmp_path, "inbox/a.csv").output_for_node("take_file").outcome.rows == 0


def test_a_file_with_only_bad_rows_fails_and_keeps_them(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    store.put("inbox/a.csv", text(row(month="13"), row(month="x")))
    with pytest.raises(Failure, match="none of its 2 rows is a good one"):
        take(tmp_path, "inbox/a.csv")
    assert len(list(store.list("rejected/inbox/a.csv/"))) == 1


@pytest.mark.parametrize(
    ("key", "changes", "problem"),
    [
        ("inbox/a.txt", {}, "inbox/a.txt: only names that end in .csv are taken"),
        ("inbox/gone.csv", {}, "inbox/gone.csv: the object is gone"),
        ("inbox/a.csv", {"etag": "older"}, "inbox/a.csv: the object was replaced"),
        ("inbox/big.csv", {"max_megabytes": 1}, r"inbox/big.csv: 2 MB are more than max_megabytes \(1\)"),
    ],
)
def test_a_file_that_can_t_be_taken_fails_with_its_name_and_the_reason(
    tmp_path: Path, key: str, changes: dict[str, Any], problem: str
) -> None:
    store = local_store(tmp_path)
    store.put("inbox/a.csv", text(GOOD))
    store.put("inbox/a.txt", text(GOOD))
    store.put("inbox/big.csv", text(GOOD) + b"\n" * 2_000_000)
    with pytest.raises(Failure, match=problem):
        take(tmp_path, key, **changes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("bad", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, bad: bool) -> None:
    # Given a file of 20 MB, good or bad in every value
    line = ",".join(["x"] * 19 if bad else GOOD.split(",")) + "\n"
    (tmp_path / "big.csv").write_text(HEADER + "\n" + line * (20_000_000 // len(line)))
    program = (
        "import sys; from pathlib import Path; from pipelines.flights.table import check\n"
        "with open(sys.argv[1], 'rb') as file: check(file, 'big', Path(sys.argv[2]))\n"
        # Not getrusage: its peak is inherited from the process that starts this one.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    # When it is checked in a process of its own
    run = [sys.executable, "-c", program, str(tmp_path / "big.csv"), str(tmp_path)]
    peak = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout) // 1024
    # Then the peak stays at what 100 MB take too: Dagster's 110 MB and DuckDB's 256 MB with its buffers
    assert peak < 450
