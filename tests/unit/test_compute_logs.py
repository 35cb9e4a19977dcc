"""Step logs in S3, and the link to them that Dagit gives to a browser."""

from pathlib import Path

import pytest
import requests
from dagster._core.storage.compute_log_manager import ComputeIOType

from dagster_stack.compute_logs import S3ComputeLogs
from tests.unit.seaweed import BUCKET

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
