"""Step logs in S3, and the link to them that Dagit gives to a browser."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import requests
from botocore.exceptions import EndpointConnectionError
from dagster import DagsterInstance
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.storage.compute_log_manager import CapturedLogData, ComputeIOType
from dagster_shared.record import copy

from dagster_stack.objects import output_reading, output_upload
from dagster_stack.objects.client import s3_client
from dagster_stack.objects.compute_logs import S3ComputeLogs
from dagster_stack.objects.output_upload import PartialUpload
from dagster_stack.step import step_execution
from tests.unit import step_jobs
from tests.unit.clock import START, Clock
from tests.unit.runs_by_hand import events, execute, kinds, message, said, started_run
from tests.unit.seaweed import BUCKET
from tests.waiting import wait_until

KEY = ["run", "compute_logs", "step"]


def test_what_a_step_printed_is_behind_a_link_on_the_public_address(s3_url: str, tmp_path: Path) -> None:
    # Given a store that browsers reach under another name than the stack does
    public = s3_url.replace("127.0.0.1", "localhost")
    logs = S3ComputeLogs(
        bucket=BUCKET, endpoint_url=s3_url, public_url=public, prefix="logs", local_dir=str(tmp_path)
    )

    # While the step has not ended there is nothing to download
    assert logs.download_url_for_type(KEY, ComputeIOType.STDOUT) is None

    # When it has printed and ended
    with logs.capture_logs(KEY):
        print("hello", flush=True)

    # Then a browser without keys gets it from there
    link = logs.download_url_for_type(KEY, ComputeIOType.STDOUT)
    assert link
    assert link.startswith(f"{public}/{BUCKET}/logs/storage/run/compute_logs/step.out?")
    assert requests.get(link, timeout=10).text == "hello\n"


@pytest.mark.parametrize(
    ("endpoint", "public", "expected"),
    [
        ("http://minio:9000", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("http://minio:9000", "", "http://minio:9000"),
        ("", "", None),
    ],
)
def test_empty_addresses_mean_the_next_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, public: str, expected: str | None
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    logs = S3ComputeLogs(bucket="b", endpoint_url=endpoint, public_url=public, local_dir=str(tmp_path))

    assert logs._public_url == expected


@dataclass
class Stream:
    """A captured stream that holds so many bytes."""

    size: int

    def forward(self) -> None: ...


def holding(*sizes: int) -> list[Any]:
    return [Stream(size) for size in sizes]


# --- what is uploaded when ------------------------------------------------------------------------------------------


@pytest.fixture
def manager(s3_url: str, tmp_path: Path) -> Iterator[S3ComputeLogs]:
    """What the stack has, with what it writes deleted afterwards."""
    yield S3ComputeLogs(
        bucket=BUCKET,
        endpoint_url=s3_url,
        public_url=s3_url,
        prefix="logs",
        local_dir=str(tmp_path / "local"),
        upload_interval=1,
    )
    client = s3_client(s3_url)
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])


def stored(url: str) -> dict[str, str]:
    """What is in the bucket, by its name below the run."""
    client = s3_client(url)
    found = client.list_objects_v2(Bucket=BUCKET, Prefix="logs/storage/").get("Contents", [])
    return {
        entry["Key"].removeprefix("logs/storage/run/compute_logs/"): client.get_object(
            Bucket=BUCKET, Key=entry["Key"]
        )["Body"]
        .read()
        .decode()
        for entry in found
    }


def test_both_streams_are_uploaded_at_the_end_and_the_files_removed(
    s3_url: str, manager: S3ComputeLogs, tmp_path: Path
) -> None:
    with manager.capture_logs(KEY) as context:
        assert context.log_key == KEY
        print("to stdout")
        print("to stderr", file=sys.stderr)

    assert stored(s3_url) == {"step.out": "to stdout\n", "step.err": "to stderr\n"}
    assert [path for path in (tmp_path / "local").rglob("*") if path.is_file()] == []
    assert manager.is_capture_complete(KEY)


def test_of_a_silent_step_stderr_alone_is_uploaded(s3_url: str, manager: S3ComputeLogs) -> None:
    """That stderr is there tells Dagit that all is; an empty stdout would cost a request a step."""
    with manager.capture_logs(KEY):
        pass

    assert stored(s3_url) == {"step.err": ""}
    assert manager.is_capture_complete(KEY)
    assert manager.get_log_data(KEY).stdout in (None, b"")


def test_what_a_failing_step_printed_is_uploaded(s3_url: str, manager: S3ComputeLogs) -> None:
    with suppress(RuntimeError), manager.capture_logs(KEY):
        print("the last words")
        raise RuntimeError

    assert stored(s3_url) == {"step.out": "the last words\n", "step.err": ""}


def test_each_execution_of_a_step_has_an_output_of_its_own(
    instance: DagsterInstance, s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a step that was executed, in an attempt that failed, twice since its first worker was lost, and once again
    monkeypatch.setattr(DagsterInstance, "compute_log_manager", property(lambda _: manager))
    run = started_run(instance, step_jobs.retrying)
    first = message(instance, run, "stubborn")
    with monkeypatch.context() as patch:
        # What the log says of the end of the first execution was never written.
        patch.setattr(step_execution, "objection", lambda *_: None)
        execute(first)
        execute(first)
    execute(message(instance, run, "stubborn", KnownExecutionState({"stubborn": 2})))

    # Then the run's log has a key for each
    captured = [event for event in events(instance, run.run_id) if event.event_type_value == "LOGS_CAPTURED"]
    keys = [event.logs_captured_data.file_key for event in captured]
    assert len(set(keys)) == 3
    assert all(event.logs_captured_data.step_keys == ["stubborn"] for event in captured)
    # And behind each is what that execution printed
    names = {key.rpartition("/")[2] for key in stored(s3_url)}
    assert {f"{key}.err" for key in keys} <= names


def test_of_much_output_the_beginning_is_kept(
    s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when a part of it was uploaded before: it is complete all the same."""
    monkeypatch.setenv("DAGSTER_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES", "10")
    monkeypatch.setattr(output_upload, "FORWARD_SECS", 0.02)
    manager._upload_interval = 0.02  # type: ignore[assignment]

    with manager.capture_logs(KEY):
        print("0123456789abc", flush=True)
        wait_until(lambda: stored(s3_url), 10, "a part is uploaded", pause=0.02)

    note = "[dagster-stack: the first 10 bytes are kept, what follows is left out]"
    assert stored(s3_url) == {"step.out": f"0123456789\n{note}\n", "step.err": ""}
    assert manager.is_capture_complete(KEY)
    assert "of stdout the first 10 bytes are kept" in caplog.text


def test_large_output_is_uploaded_from_the_file_while_more_is_printed(
    s3_url: str, manager: S3ComputeLogs
) -> None:
    """Not from memory; and what comes meanwhile must not be sent beyond the length that was announced."""
    path = Path(manager.local_manager.get_captured_local_path(KEY, "out"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 3_000_000)
    put = manager._s3_session.put_object

    def print_more(**request: Any) -> None:
        assert not isinstance(request["Body"], bytes)
        with path.open("ab") as file:
            file.write(b"y" * 1000)
        put(**request)

    manager._s3_session = SimpleNamespace(put_object=print_more)
    manager.upload_to_cloud_storage(KEY, ComputeIOType.STDOUT, partial=True)

    assert stored(s3_url) == {"step.out.partial": "x" * 3_000_000}


@pytest.mark.parametrize("takes", [0.01, 0.2, 1.0])
def test_what_a_step_prints_is_stored_within_4_seconds_however_long_an_upload_takes(takes: float) -> None:
    # Given a step that prints all the time, and uploads that take their time
    clock, printed, size, worst, busy = Clock(), START, 0, 0.0, 0.0

    def upload(_: ComputeIOType) -> None:
        nonlocal printed, worst, busy
        oldest, printed = printed, clock.now
        clock.sleep(takes)
        worst, busy = max(worst, clock.now - oldest), busy + takes

    partial = PartialUpload(upload, 2, most=1 << 40, clock=clock.monotonic)
    while clock.now < START + 600:
        clock.sleep(1)
        size += 1
        partial.look(holding(size, 0))

    # Then nobody waits for it for longer, with a look at the page each second within 5 s
    assert worst <= 4 + takes
    # And uploads leave most of the time to the step
    assert busy < 600 / 3


def test_a_running_steps_output_waits_for_its_upload_two_seconds_at_most() -> None:
    # Given a step that prints now and then, and a store that answers at once
    clock, printed, uploaded, worst, size = Clock(), START, 0, 0.0, 1

    def upload(_: ComputeIOType) -> None:
        nonlocal uploaded, worst
        worst, uploaded = max(worst, clock.now - printed), size

    partial = PartialUpload(upload, 2, most=1 << 40, clock=clock.monotonic)
    for second in range(200):
        clock.sleep(1.01)
        partial.look(holding(size, 0))
        if uploaded == size:
            # Right after a look, which is the worst moment
            printed, size = clock.now, size + 1 + second % 3

    assert uploaded
    assert worst < 2.1


def test_the_output_of_a_running_step_is_in_dagit_until_the_whole_is(
    s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a look at the output every moment, and an upload at each of them
    monkeypatch.setattr(output_upload, "FORWARD_SECS", 0.05)
    manager._upload_interval = 0.05  # type: ignore[assignment]

    # When a step prints and goes on
    with manager.capture_logs(KEY):
        print("so far", flush=True)
        seen = wait_until(lambda: stored(s3_url), 10, "a part is uploaded", pause=0.05)
        assert seen == {"step.out.partial": "so far\n"}
        assert manager.get_log_data(KEY).stdout == b"so far\n"
        assert not manager.is_capture_complete(KEY)
        print("and more", flush=True)
        wait_until(
            lambda: stored(s3_url)["step.out.partial"], 10, "the next part too",
            until="so far\nand more\n".__eq__, pause=0.05,
        )  # fmt: skip

    # Then at its end the whole takes the part's place
    assert stored(s3_url) == {"step.out": "so far\nand more\n", "step.err": ""}


def test_the_output_of_a_running_step_goes_to_the_workers_own_log(
    manager: S3ComputeLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_upload, "FORWARD_SECS", 0.05)
    own = tmp_path / "worker.log"

    with own.open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with manager.capture_logs(KEY):
            print("so far", flush=True)
            wait_until(own.read_text, 10, "it is in the worker's log", pause=0.02)
        monkeypatch.undo()

    assert own.read_text() == "so far\n"


def test_much_that_is_printed_is_not_read_from_the_start_at_each_look(
    s3_url: str, manager: S3ComputeLogs, tmp_path: Path
) -> None:
    # Given a page that has seen a part
    client = s3_client(s3_url)
    client.put_object(Bucket=BUCKET, Key="logs/storage/run/compute_logs/step.out.partial", Body=b"so far\n")
    first = manager.get_log_data(KEY)
    assert (first.stdout, first.cursor) == (b"so far\n", "7:0")

    # When it looks again, with nothing new, and with something
    assert manager.get_log_data(KEY, first.cursor).stdout == b""
    client.put_object(Bucket=BUCKET, Key="logs/storage/run/compute_logs/step.out", Body=b"so far\nand more\n")
    second = manager.get_log_data(KEY, first.cursor, max_bytes=5)

    # Then it gets what is new, and as much as it asked for
    assert (second.stdout, second.cursor) == (b"and m", "12:0")
    assert manager.get_log_data(KEY, second.cursor).stdout == b"ore\n"
    # And Dagit keeps no copy, in what is memory
    assert [path for path in (tmp_path / "local").rglob("*") if path.is_file()] == []


def test_a_page_of_a_running_step_follows_it_to_its_end(
    manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a page that shows a step
    for module, name in ((output_upload, "FORWARD_SECS"), (output_reading, "POLL_SECS")):
        monkeypatch.setattr(module, name, 0.02)
    manager._upload_interval = 0.02  # type: ignore[assignment]
    # It reads in another process than the one that executes the step.
    monkeypatch.setattr(manager, "has_local_file", lambda *_: False)
    seen: list[CapturedLogData] = []
    subscription = manager.subscribe(KEY)(seen.append)

    # When it prints, fails to be read once, and ends
    def shown() -> bytes:
        return b"".join(data.stdout or b"" for data in seen)

    with manager.capture_logs(KEY):
        print("first", flush=True)
        wait_until(shown, 10, "the first line is shown", until=b"first\n".__eq__, pause=0.02)
        with monkeypatch.context() as patch:
            refused: list[Any] = []

            def refuse(*arguments: Any, **_: Any) -> None:
                refused.append(arguments)
                raise EndpointConnectionError(endpoint_url="http://minio:9000")

            patch.setattr(manager, "get_log_data", refuse)
            wait_until(lambda: refused, 10, "a look failed", pause=0.02)
        print("last", flush=True)

    # Then the page has all of it, once, and looks no more
    wait_until(lambda: subscription.is_complete, 10, "it is complete", pause=0.02)
    assert shown() == b"first\nlast\n"
    wait_until(lambda: manager._subscription_manager._thread is None, 10, "nobody looks any more", pause=0.02)
    subscription.dispose()


def test_without_an_interval_nothing_is_uploaded_before_the_end(
    s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(output_upload, "FORWARD_SECS", 0.02)
    manager._upload_interval = None
    own = tmp_path / "worker.log"

    with own.open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with manager.capture_logs(KEY):
            expected = ""
            for line in ("one\n", "two\n", "three\n"):
                expected += line
                print(line, end="", flush=True)
                wait_until(own.read_text, 10, "a look was taken", until=expected.__eq__, pause=0.01)
            assert stored(s3_url) == {}
        monkeypatch.undo()


# --- a store that fails ----------------------------------------------------------------------------------------------


def test_a_part_that_can_not_be_uploaded_is_only_logged(
    s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a store that refuses parts
    monkeypatch.setattr(output_upload, "FORWARD_SECS", 0.02)
    manager._upload_interval = 0.02  # type: ignore[assignment]
    upload = manager.upload_to_cloud_storage

    def refuse(log_key: Any, io_type: ComputeIOType, partial: bool = False) -> None:
        if partial:
            raise EndpointConnectionError(endpoint_url=s3_url)
        upload(log_key, io_type)

    monkeypatch.setattr(manager, "upload_to_cloud_storage", refuse)

    # When a step prints meanwhile
    with manager.capture_logs(KEY):
        print("hello", flush=True)
        wait_until(lambda: "the output so far is not in S3" in caplog.text, 10, "it is logged", pause=0.02)

    # Then it is all there at the end
    assert stored(s3_url) == {"step.out": "hello\n", "step.err": ""}


def test_output_that_can_not_be_uploaded_is_told_in_the_run_log_and_fails_no_step(
    instance: DagsterInstance, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given a store that is away when a step has ended
    def refuse(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="http://minio:9000")

    monkeypatch.setattr(manager, "upload_to_cloud_storage", refuse)
    monkeypatch.setattr(DagsterInstance, "compute_log_manager", property(lambda _: manager))
    run = started_run(instance, step_jobs.alone)

    execute(message(instance, run, "one"))

    # Then the step has succeeded, and somebody learns where its output is not
    told = kinds(instance, run.run_id, "one")
    assert "STEP_SUCCESS" in told
    assert "STEP_FAILURE" not in told
    assert "Exception while cleaning up compute log capture" in said(instance, run.run_id)


def test_output_that_can_not_be_uploaded_leaves_no_file(
    manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker's small disk, which is memory, must not fill while the store is away."""

    def refuse(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="http://minio:9000")

    monkeypatch.setattr(manager, "upload_to_cloud_storage", refuse)

    with pytest.raises(EndpointConnectionError), manager.capture_logs(KEY):
        print("hello")

    assert [path for path in (tmp_path / "local").rglob("*") if path.is_file()] == []


# --- nothing to read -------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], str]:
    """The id of a run that ended so many seconds ago."""

    def end(seconds_ago: float) -> str:
        run = started_run(instance, step_jobs.alone)
        instance.report_run_failed(run)
        record = instance.get_run_record_by_id(run.run_id)
        assert record
        earlier = copy(record, end_time=time.time() - seconds_ago)
        monkeypatch.setattr(instance, "get_run_record_by_id", lambda _: earlier)
        return run.run_id

    return end


def told(manager: S3ComputeLogs, run_id: str, cursor: str | None = None) -> list[str | None]:
    data = manager.get_log_data([run_id, "compute_logs", "step"], cursor)
    return [text.decode() if text is not None else None for text in (data.stdout, data.stderr)]


def test_output_that_is_not_there_any_more_says_why(
    instance: DagsterInstance, manager: S3ComputeLogs, ended: Callable[[float], str]
) -> None:
    manager.register_instance(instance)

    texts = told(manager, ended(3600))

    assert all(
        text and text.startswith("There is no output here. It was printed more than 30 days ago")
        for text in texts
    )
    assert all(text and "or its worker died" in text for text in texts)


@pytest.mark.parametrize("status", ["STARTED", "SUCCESS"])
def test_while_output_may_still_come_nothing_is_said(
    instance: DagsterInstance, manager: S3ComputeLogs, status: str, ended: Callable[[float], str]
) -> None:
    """The run goes on, or has just ended and its last step's output is being uploaded."""
    manager.register_instance(instance)
    run_id = started_run(instance, step_jobs.alone).run_id if status == "STARTED" else ended(5)

    assert told(manager, run_id) == [None, None]


def test_a_step_that_printed_nothing_has_no_output_and_no_excuse(
    instance: DagsterInstance, manager: S3ComputeLogs, ended: Callable[[float], str]
) -> None:
    manager.register_instance(instance)
    run_id = ended(3600)

    with manager.capture_logs([run_id, "compute_logs", "step"]):
        pass

    assert told(manager, run_id) == [None, ""]


def test_what_a_lost_worker_had_uploaded_is_shown(
    instance: DagsterInstance, manager: S3ComputeLogs, s3_url: str, ended: Callable[[float], str]
) -> None:
    manager.register_instance(instance)
    run_id = ended(3600)
    key = f"logs/storage/{run_id}/compute_logs/step.out.partial"
    s3_client(s3_url).put_object(Bucket=BUCKET, Key=key, Body=b"its last words\n")

    assert told(manager, run_id) == ["its last words\n", None]


@pytest.fixture
def refused(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3ComputeLogs]:
    """A manager whose key the store does not know."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()
    yield S3ComputeLogs(bucket=BUCKET, endpoint_url=s3_url, local_dir=str(tmp_path / "local"))
    s3_client(s3_url).close()
    s3_client(s3_url, impatient=True).close()
    s3_client.cache_clear()


def test_output_that_the_store_refuses_says_so_with_the_cure_and_no_secret(
    instance: DagsterInstance, refused: S3ComputeLogs, ended: Callable[[float], str]
) -> None:
    refused.register_instance(instance)
    run_id = ended(3600)

    texts = told(refused, run_id)

    for text in texts:
        assert text
        assert text.startswith("The S3 store refuses to show this output (")
        assert f"lacks s3:GetObject and s3:ListBucket for the bucket {BUCKET}" in text
        assert "very-secret" not in text
    # And there is neither a link nor an error in its place
    metadata = refused.get_log_metadata([run_id, "compute_logs", "step"])
    assert (metadata.stdout_download_url, metadata.stderr_location) == (None, None)
    # And a page that has begun to read gets no sentences in between
    assert told(refused, run_id, cursor="10:10") == [None, None]


def test_a_bucket_that_is_gone_is_named(s3_url: str, tmp_path: Path) -> None:
    logs = S3ComputeLogs(bucket="another", endpoint_url=s3_url, local_dir=str(tmp_path))

    assert told(logs, "run")[0] == (
        "The bucket another is not there. `make up` makes it, or S3_BUCKET in .env is wrong.\n"
    )


def test_a_store_that_does_not_answer_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_url: str
) -> None:
    logs = S3ComputeLogs(bucket=BUCKET, endpoint_url="http://127.0.0.1:9", local_dir=str(tmp_path))
    started = time.monotonic()

    (text, _) = told(logs, "run")

    assert text
    assert text.startswith("The S3 store does not answer, try again later. ")
    assert time.monotonic() - started < 10
    assert logs.get_log_metadata(KEY).stdout_download_url is None


def test_a_log_that_is_no_steps_has_no_sentences(instance: DagsterInstance, manager: S3ComputeLogs) -> None:
    """That of a sensor's tick is read by a program."""
    manager.register_instance(instance)

    assert manager.get_log_data(["repository", "sensor", "1"]).stdout is None


def test_the_log_of_a_tick_is_uploaded_and_read(s3_url: str, manager: S3ComputeLogs) -> None:
    key = ["repository", "sensor", "1"]
    with manager.open_log_stream(key, ComputeIOType.STDERR) as stream:
        assert stream
        stream.write("a line\n")

    assert manager.get_log_data_for_type(key, ComputeIOType.STDERR, 0, None) == (b"a line\n", 7)
    assert manager.is_capture_complete(key)
