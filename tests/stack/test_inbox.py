"""A CSV under `inbox/` becomes a run, once; what is wrong with it is said, and its good rows are kept."""

import csv
import io
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from tests.stack import raw_flights, runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

SENSOR = {**runs.LOCATION, "sensorName": "inbox"}
TICKS = """
query Ticks($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) {
    ... on Sensor { sensorState { status ticks(limit: 5) { timestamp status error { message } } } }
  }
}
"""
TAG = "inbox/key"
#: A new one a session: the stack would not take a file twice that an earlier session left.
FOLDER = f"inbox/test-{uuid.uuid4().hex[:8]}"
ROWS = 400
LARGE_BYTES = 100_000_000


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The raw table's lines, header first."""
    return raw_flights.raw_table().splitlines()


@pytest.fixture(scope="module")
def good(lines: list[str]) -> str:
    return "\n".join(lines[: ROWS + 1]) + "\n"


@pytest.fixture(scope="module")
def mixed(lines: list[str]) -> str:
    """Twenty rows, of which some have what is no value of their column, or too few fields."""
    rows = [line.split(",") for line in lines[:21]]
    place = {name: number for number, name in enumerate(rows[0])}
    rows[3][place["dep_delay"]] = "late"
    rows[5][place["month"]] = "13"
    rows[7][place["distance"]] = ""
    rows[9] = rows[9][:4]
    return "\n".join(",".join(row) for row in rows) + "\n"


@pytest.fixture(scope="module")
def inbox(stack: Stack, good: str, mixed: str, lines: list[str]) -> dict[str, dict[str, Any]]:
    """One file of each kind, put in all at once: by its name the run that came of it, ended."""
    files = {
        "good.csv": good.encode(),
        "mixed.csv": mixed.encode(),
        "missing-column.csv": "\n".join(",".join(line.split(",")[:9]) for line in lines[:20]).encode(),
        "picture.csv": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
        "empty.csv": b"",
        "header.csv": lines[0].encode() + b"\n",
        "notes.txt": b"not for the stack\n",
        "hopeless.csv": (lines[0] + "\n" + "nonsense\n" * 10).encode(),
    }
    for name, content in files.items():
        put(stack, name, content)
    return {name: stack.run(the_run(stack, name)) | {"id": the_run(stack, name)} for name in files}


@dataclass(frozen=True)
class Large:
    """A file of the raw table so many times over and a part of it, and since when each worker ran at that time."""

    times: int
    part: bytes
    workers: dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def large(stack: Stack, inbox: dict[str, dict[str, Any]], lines: list[str]) -> Large:
    """Put in after the small ones: its run goes on while the tests wait for other things."""
    header, *rows = lines
    once = "\n".join(rows).encode() + b"\n"
    times, rest = divmod(LARGE_BYTES, len(once))
    part = once[:rest].rpartition(b"\n")[0] + b"\n"
    names = [entry.name for entry in stack.containers("worker")]
    workers = {name: str(stack.inspect(name)["State"]["StartedAt"]) for name in names}
    put(stack, "large.csv", header.encode() + b"\n" + once * times + part)
    return Large(times, part, workers)


def put(stack: Stack, name: str, content: bytes) -> None:
    stack.s3.put_object(Bucket=stack.bucket, Key=f"{FOLDER}/{name}", Body=content)


def found_runs(stack: Stack, name: str) -> list[str]:
    """The runs of a file, newest first."""
    return [run["runId"] for run in runs.with_tag(stack, TAG, f"{FOLDER}/{name}")]


def the_run(stack: Stack, name: str, number: int = 1, timeout: float = 300) -> str:
    """The newest run of a file once there are `number`, ended."""
    found = wait_until(
        lambda: found_runs(stack, name),
        timeout,
        f"{number} runs of {name}",
        until=lambda seen: len(seen) == number,
    )
    stack.wait_for_run(found[0], timeout)
    return found[0]


def wait_for_ticks(stack: Stack, number: int) -> None:
    """Until the sensor has looked so many times from now on, each without an error."""
    began = last_ticks(stack)[0]["timestamp"]
    seen = wait_until(
        lambda: [tick for tick in last_ticks(stack) if tick["timestamp"] > began],
        180, f"{number} ticks of the sensor",
        until=lambda ticks: len([tick for tick in ticks if tick["status"] != "STARTED"]) >= number,
    )  # fmt: skip
    assert not [tick["error"] for tick in seen if tick["error"]]


def last_ticks(stack: Stack) -> list[dict[str, Any]]:
    ticks: list[dict[str, Any]] = stack.graphql(TICKS, selector=SENSOR)["sensorOrError"]["sensorState"][
        "ticks"
    ]
    return ticks


def failure(stack: Stack, run: dict[str, Any]) -> str:
    """What the step that took the file says of it."""
    assert run["status"] == "FAILURE"
    return next(text for text in stack.failure_texts(run["id"]) if text.startswith("take_file"))


def test_a_good_file_becomes_a_run_and_a_report(
    stack: Stack, inbox: dict[str, dict[str, Any]], good: str
) -> None:
    # Given a CSV that was put into the inbox
    run = inbox["good.csv"]

    # When its run has ended
    metadata = stack.metadata(run["id"], "report")

    # Then it succeeded, with the figures of the file
    assert run["status"] == "SUCCESS", stack.failure_texts(run["id"])
    counts = raw_flights.figures(good).counts()
    assert {name: metadata[name] for name in counts} == counts
    assert f"reports/inbox_flights/{run['id']}/report.html" in stack.keys("reports/inbox_flights/")


def test_bad_rows_are_named_and_good_rows_are_kept(
    stack: Stack, inbox: dict[str, dict[str, Any]], mixed: str
) -> None:
    # Given a file with four bad rows among twenty
    run = inbox["mixed.csv"]
    assert run["status"] == "SUCCESS", stack.failure_texts(run["id"])

    # When what was rejected is read from the bucket
    metadata = stack.metadata(run["id"], "take_file")
    content = stack.s3.get_object(Bucket=stack.bucket, Key=metadata["rejected_key"])["Body"].read().decode()
    rejected = {int(row["line"]): row for row in csv.DictReader(io.StringIO(content))}

    # Then each bad row is there with file, line and reason, and the others were used
    assert {row["file"] for row in rejected.values()} == {f"{FOLDER}/mixed.csv"}
    reasons = {line: (row["column"], row["value"], row["reason"]) for line, row in rejected.items()}
    assert reasons == {
        4: ("dep_delay", "late", "not a whole number"),
        6: ("month", "13", "not between 1 and 12"),
        8: ("distance", "", "empty"),
        10: ("", "", "wrong number of fields"),
    }
    assert (metadata["rows"], metadata["rejected"]) == (20, 4)
    assert metadata["used"] + metadata["cancelled"] == 16


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing-column.csv", "missing columns: carrier, flight, tailnum"),
        ("picture.csv", "not a CSV file"),
        ("empty.csv", "the file is empty"),
        ("notes.txt", "only names that end in .csv are taken"),
        ("hopeless.csv", "none of its 10 rows is a good one"),
    ],
)
def test_a_file_that_is_no_table_of_flights_fails_with_its_name_and_reason(
    stack: Stack, inbox: dict[str, dict[str, Any]], name: str, reason: str
) -> None:
    # Given a file that can't be used
    # When its run has ended
    text = failure(stack, inbox[name])

    # Then it failed at once, and says which file and why
    assert f"{FOLDER}/{name}: " in text
    assert reason in text


def test_a_file_with_a_header_alone_is_a_report_of_nothing(
    stack: Stack, inbox: dict[str, dict[str, Any]]
) -> None:
    # Given a CSV without rows
    run = inbox["header.csv"]

    # When its run has ended
    # Then it succeeded, and counts nothing
    assert run["status"] == "SUCCESS", stack.failure_texts(run["id"])
    assert stack.metadata(run["id"], "report")["rows"] == 0


def test_the_same_object_is_never_taken_twice(
    stack: Stack, inbox: dict[str, dict[str, Any]], good: str
) -> None:
    # Given files that had their runs, one of them put again unchanged
    put(stack, "good.csv", good.encode())

    # When the sensor has looked again, before and after a restart of the daemon
    wait_for_ticks(stack, 2)
    stack.compose("restart", "daemon")
    wait_for_ticks(stack, 1)

    # Then no file had a second run
    assert {name: found_runs(stack, name) for name in inbox} == {
        name: [run["id"]] for name, run in inbox.items()
    }
    stack.wait_until_healthy("daemon")


def test_a_changed_object_becomes_a_second_run(
    stack: Stack, inbox: dict[str, dict[str, Any]], lines: list[str]
) -> None:
    # Given a file that had its run
    changed = "\n".join(lines[:100]) + "\n"

    # When another content is put under its name
    put(stack, "good.csv", changed.encode())

    # Then that is one more run, of the new content
    run_id = the_run(stack, "good.csv", number=2)
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert stack.metadata(run_id, "report")["rows"] == 99


def test_a_file_of_100_mb_is_taken_within_the_workers_memory(
    stack: Stack, lines: list[str], large: Large
) -> None:
    # Given a CSV of 100 MB: the raw table some times over
    header, times, part, before = lines[0], large.times, large.part, large.workers

    # When it was put into the inbox
    run_id = the_run(stack, "large.csv")

    # Then each row is accounted for, and no worker died of it
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    metadata = stack.metadata(run_id, "take_file")
    whole, piece = raw_flights.figures("\n".join(lines)), raw_flights.figures(header + "\n" + part.decode())
    assert {name: metadata[name] for name in whole.counts()} == {
        name: count * times + piece.counts()[name] for name, count in whole.counts().items()
    }
    states = {name: stack.inspect(name)["State"] for name in before}
    assert {name: state["StartedAt"] for name, state in states.items()} == before
    assert not any(state["OOMKilled"] for state in states.values())


def test_a_file_above_the_limit_fails_and_names_the_limit(stack: Stack, good: str) -> None:
    # Given a limit in the op's config below the size of a file
    key, content = "test-limit/large.csv", good.encode() * 50
    etag = stack.s3.put_object(Bucket=stack.bucket, Key=key, Body=content)["ETag"].strip('"')
    config = {"ops": {"take_file": {"config": {"key": key, "etag": etag, "max_megabytes": 1}}}}

    # When a run takes it
    run_id = stack.launch("inbox_flights", config)
    stack.wait_for_run(run_id)

    # Then it fails before reading, and says which setting allows more
    text = failure(stack, stack.run(run_id) | {"id": run_id})
    assert key in text
    assert "max_megabytes (1)" in text
