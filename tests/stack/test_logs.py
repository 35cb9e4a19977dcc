"""What steps print: in S3 while they run, in Dagit as they wrote it, in the browser through a link."""

from urllib.parse import urlsplit

import pytest
import requests

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc
from tests.stack.runs import Output
from tests.stack.stack import Stack
from tests.waiting import wait_until

STEP = "talk"
FIRST, LAST = "first line of stdout", "last line of stdout: ünïcode ✓"


@pytest.fixture(scope="module")
def early(stack: Stack) -> tuple[str, Output]:
    """A run of a step that prints, sleeps and prints, and what Dagit showed of it before it ended."""
    jobs = AdHoc(stack)
    jobs.install()
    run_id = jobs.start("talking")

    def look() -> Output | None:
        seen = runs.output(stack, run_id, STEP)
        # Asked for after the output: what was seen was there while the step ran.
        assert not runs.count_events(stack, run_id, "STEP_SUCCESS"), f"only after its end: {seen}"
        return seen

    seen = wait_until(
        look, 120, "the output of a running step", until=lambda seen: seen and FIRST in seen.stdout
    )
    assert seen
    return run_id, seen


@pytest.fixture(scope="module")
def final(stack: Stack, early: tuple[str, Output]) -> tuple[str, Output]:
    """The same once the run has ended."""
    run_id, _ = early
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    seen = runs.output(stack, run_id, STEP)
    assert seen
    return run_id, seen


def test_dagit_shows_the_output_of_a_step_that_still_runs(early: tuple[str, Output]) -> None:
    # Given a step that printed a line and sleeps
    # When Dagit is asked for its output before it ends
    _, seen = early

    # Then the line is there, and nothing of what comes later
    assert seen.stdout.splitlines() == [FIRST]


def test_dagit_shows_exactly_what_a_step_printed(final: tuple[str, Output]) -> None:
    # Given a step that ended
    # When Dagit is asked for its output
    _, seen = final

    # Then stdout is what was printed, and stderr holds its line among Dagster's own
    assert seen.stdout.splitlines() == [FIRST, LAST]
    assert "a line of stderr" in seen.stderr.splitlines()


def test_the_download_link_opens_on_this_host(stack: Stack, final: tuple[str, Output]) -> None:
    # Given the link that Dagit offers for a step's stdout
    _, seen = final
    assert seen.stdout_url
    assert urlsplit(seen.stdout_url).netloc == f"127.0.0.1:{stack.settings['MINIO_PORT']}"

    # When it is opened without keys
    response = requests.get(seen.stdout_url, timeout=30)

    # Then it gives the text
    assert response.status_code == 200
    assert response.content.decode().splitlines() == [FIRST, LAST]


def test_output_is_in_the_bucket(stack: Stack, final: tuple[str, Output]) -> None:
    # Given a finished run
    run_id, _ = final

    # When the bucket is listed with root's keys
    listed = stack.s3_root.list_objects_v2(Bucket=stack.bucket, Prefix=f"logs/storage/{run_id}/")["Contents"]

    # Then stdout and stderr of its step are there
    assert {entry["Key"].rpartition(".")[2] for entry in listed} >= {"err", "out"}
    (key,) = [entry["Key"] for entry in listed if entry["Key"].endswith(".out")]
    assert LAST in stack.s3_root.get_object(Bucket=stack.bucket, Key=key)["Body"].read().decode()


def test_a_worker_keeps_no_output_of_its_own(stack: Stack, final: tuple[str, Output]) -> None:
    # Given a finished run
    run_id, _ = final

    # When the workers' scratch folders are searched for its output
    left = [
        stack.docker("exec", entry["Name"], "find", "/tmp/compute-logs", "-path", f"*{run_id}*", "-type", "f", check=False).stdout
        for entry in stack.containers("worker")
    ]  # fmt: skip

    # Then there is none: it would fill the memory that it lies in
    assert "".join(left) == ""
