"""What steps print: in S3 while they run, in Dagit as they wrote it, in the browser through a link."""

import re
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
import requests

from dagster_stack.objects.compute_logs import UPLOAD_SECS
from dagster_stack.objects.output_reading import POLL_SECS
from tests.faults.faults import policy_withdrawn
from tests.stack import runs, work
from tests.stack.ad_hoc import AdHoc
from tests.stack.monitoring import Monitoring
from tests.stack.runs import Output
from tests.stack.stack import Stack
from tests.waiting import wait_until

STEP = "talk"
#: A line of a service, in the form that .env has as it comes.
EVENT = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<service>[a-z-]+)"
    r"(?: run=\S+)?(?: step=\S+)?(?: task=\S+)? (?:action|logger)=\S+ .*"
)
FIRST, LAST = "first line of stdout", "last line of stdout: ünïcode ✓"


@pytest.fixture(scope="module", autouse=True)
def gone(stack: Stack) -> str:
    """A run whose output was deleted, as it is after 30 days: first of all, as it takes a minute until that is said."""
    jobs = AdHoc(stack)
    jobs.install()
    run_id = jobs.run("retrying")
    for key in stack.keys(f"logs/storage/{run_id}/"):
        stack.s3_root.delete_object(Bucket=stack.bucket, Key=key)
    return run_id


@pytest.fixture(scope="module")
def talking(stack: Stack) -> tuple[str, Output, float]:
    """A run of a step that prints, sleeps and prints; what Dagit showed of it before it ended, and when at first."""
    jobs = AdHoc(stack)
    jobs.install()
    run_id = jobs.start("talking")
    runs.wait_for_event(stack, run_id, "STEP_START", STEP)

    def look() -> Output | None:
        seen = runs.output(stack, run_id, STEP)
        # Asked for after the output: what was seen was there while the step ran.
        assert not runs.count_events(stack, run_id, "STEP_SUCCESS"), f"only after its end: {seen}"
        return seen

    seen = wait_until(
        look, 120, "the output of a running step", until=lambda seen: seen and FIRST in seen.stdout, pause=0.1
    )
    assert seen
    return run_id, seen, time.time()


@pytest.fixture(scope="module")
def early(talking: tuple[str, Output, float]) -> tuple[str, Output]:
    """The same without the time."""
    return talking[:2]


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


def test_what_a_running_step_printed_is_in_dagit_within_five_seconds(
    stack: Stack, talking: tuple[str, Output, float]
) -> None:
    # Given when the step started, and printed its first line at once
    run_id, _, seen_at = talking
    (started,) = [event for event in stack.events(run_id) if event.get("eventType") == "STEP_START"]

    # Then an open page, which looks each second, had the line within five
    assert seen_at - float(started["timestamp"]) / 1000 + POLL_SECS < 5


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
        stack.docker("exec", entry.name, "find", "/tmp/compute-logs", "-path", f"*{run_id}*", "-type", "f", check=False).stdout
        for entry in stack.containers("worker")
    ]  # fmt: skip

    # Then there is none: it would fill the memory that it lies in
    assert "".join(left) == ""


def test_each_attempt_has_a_log_of_its_own(stack: Stack, ad_hoc: AdHoc) -> None:
    # Given a step that fails twice, and prints which attempt it is
    run_id = ad_hoc.run("retrying")

    # Then each attempt's output is there, and the link to it
    found = list(runs.outputs(stack, run_id, "stubborn"))
    assert [output.stdout.strip() for output in found] == ["attempt 0", "attempt 1", "attempt 2"]
    assert len({output.stdout_url for output in found}) == 3


def test_output_that_the_store_refuses_says_so(stack: Stack, final: tuple[str, Output]) -> None:
    # Given output that was shown
    run_id, _ = final

    # When the stack's key may not read it any more
    with policy_withdrawn(0).inject(stack):
        seen = runs.output(stack, run_id, STEP)

    # Then Dagit says that, in its place, with the cure, and no secret
    assert seen
    for text in (seen.stdout, seen.stderr):
        assert text.startswith(
            "The S3 store refuses to show this output (AccessDenied). Either S3_ACCESS_KEY"
        )
        assert stack.settings["S3_SECRET_KEY"] not in text
    assert seen.stdout_url is None
    # And it is there again afterwards
    again = runs.output(stack, run_id, STEP)
    assert again
    assert LAST in again.stdout


# --- the services' own ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def since(stack: Stack) -> str:
    """A time, after which work was done on every queue. What other tests killed has left lines of its own before."""
    before = datetime.now(UTC).isoformat()
    work.succeed(stack)
    return before


@pytest.mark.parametrize("service", ["daemon", "runner", "worker", "worker-heavy"])
def test_a_service_writes_one_line_an_event(stack: Stack, since: str, service: str) -> None:
    # Given what a service has written
    said = stack.compose("logs", "--no-color", "--no-log-prefix", "--since", since, service).stdout

    # Then each line has its parts, the service's name among them, and no colours
    assert_events(said, service)


@pytest.mark.parametrize("service", ["dagit", "init", "metrics", "flower"])
def test_so_do_those_that_have_no_part_in_a_run(stack: Stack, monitoring: Monitoring, service: str) -> None:
    assert_events(stack.compose("logs", "--no-color", "--no-log-prefix", service).stdout, service)


def assert_events(said: str, service: str) -> None:
    # Compose 2.26 begins each line with a control sequence, or with some.
    lines = [line.replace("\x1b[2K", "") for line in said.splitlines()]
    events = [EVENT.fullmatch(line) for line in lines]
    assert [line for line, event in zip(lines, events, strict=True) if not event] == []
    assert {event["service"] for event in events if event} == {service}


def test_a_run_is_followed_across_services(stack: Stack) -> None:
    # Given a run that a runner drove and workers executed
    run_id = stack.succeed("parallel_pipeline")

    # When a user asks for its log by the beginning of its id
    lines = stack.make("logs", f"RUN={run_id[:8]}").stdout.splitlines()

    # Then all that concerns it is there, from each of them, in the order of time
    assert all(run_id in line for line in lines)
    services = {line.split()[0].rpartition("-")[0] for line in lines}
    assert {"daemon", "runner", "worker"} <= services
    for action in ("run.started", "step.started", "task.received", "step.succeeded", "run.succeeded"):
        assert [line for line in lines if f" action={action} " in line], action
    started = [place for place, line in enumerate(lines) if " action=run.started " in line]
    ended = [place for place, line in enumerate(lines) if " action=run.succeeded " in line]
    assert started < ended
    # And of one service alone when that is asked for
    alone = stack.make("logs", f"RUN={run_id}", "SERVICE=runner").stdout.splitlines()
    assert {line.split()[0].rpartition("-")[0] for line in alone} == {"runner"}


def test_a_run_that_nobody_knows_is_not_followed(stack: Stack) -> None:
    result = stack.make("logs", "RUN=00000000", check=False)

    assert result.returncode != 0
    assert "No log names the run 00000000" in result.stderr


# --- what takes a minute ----------------------------------------------------------------------------------------------


def test_output_that_is_gone_says_so(stack: Stack, gone: str) -> None:
    # Given a run whose output was deleted
    # When Dagit is asked for it, once no upload can be under way any more
    seen = wait_until(
        lambda: runs.output(stack, gone, "stubborn"), UPLOAD_SECS + 30, "a word in its place",
        until=lambda seen: seen and seen.stdout,
    )  # fmt: skip

    # Then it says that there is none, and offers no link
    assert seen
    assert seen.stdout.startswith(
        "There is no output here. It was printed more than 30 days ago and has expired"
    )
    assert seen.stdout_url is None
