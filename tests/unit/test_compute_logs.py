"""Step logs in S3, and the link to them that Dagit gives to a browser."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import EndpointConnectionError
from dagster import DagsterInstance
from dagster._core.storage.compute_log_manager import ComputeIOType

from dagster_stack.storage import compute_logs
from dagster_stack.storage.compute_logs import S3ComputeLogs
from dagster_stack.storage.s3 import s3_client
from tests.unit import step_jobs
from tests.unit.runs_by_hand import execute, kinds, message, said, started_run
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


def test_a_second_attempt_leaves_its_own_output(s3_url: str, manager: S3ComputeLogs) -> None:
    for attempt in (1, 2):
        with manager.capture_logs(KEY):
            print(f"attempt {attempt}")

    assert stored(s3_url)["step.out"] == "attempt 2\n"


def test_the_output_of_a_running_step_is_in_dagit_until_the_whole_is(
    s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a look at the output every moment, and an upload at each of them
    monkeypatch.setattr(compute_logs, "FORWARD_SECS", 0.05)
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
    monkeypatch.setattr(compute_logs, "FORWARD_SECS", 0.05)
    own = tmp_path / "worker.log"

    with own.open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with manager.capture_logs(KEY):
            print("so far", flush=True)
            wait_until(own.read_text, 10, "it is in the worker's log", pause=0.02)
        monkeypatch.undo()

    assert own.read_text() == "so far\n"


def test_without_an_interval_nothing_is_uploaded_before_the_end(
    s3_url: str, manager: S3ComputeLogs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compute_logs, "FORWARD_SECS", 0.02)
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
    monkeypatch.setattr(compute_logs, "FORWARD_SECS", 0.02)
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
