"""The bucket as figures, from a listing of a real S3 store."""

from threading import Timer

import pytest

from dagster_stack.monitoring.bucket import FIRST_SECS, Bucket, Listing
from dagster_stack.objects.client import s3_client
from tests.unit.seaweed import BUCKET


def test_objects_and_bytes_are_told_by_known_prefix(s3_url: str) -> None:
    client = s3_client(s3_url)
    for key, size in {"storage/r1/a": 5, "storage/r2/b": 7, "logs/r1/c": 2, "mine/d": 1, "e": 1}.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * size)
    bucket = Bucket()
    bucket.update(Listing(client, BUCKET, ("storage", "logs", "empty"), bucket).sizes())
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in bucket.figures()
        for sample in metric.samples
    }
    assert found["dagster_bucket_bytes", "storage"] == 12
    assert found["dagster_bucket_objects", "storage"] == 2
    assert found["dagster_bucket_bytes", "logs"] == 2
    assert found["dagster_bucket_objects", "empty"] == 0
    assert found["dagster_bucket_objects", "other"] == 2
    assert found["dagster_bucket_listing_age_seconds",] < 60


def test_the_very_first_figures_wait_for_a_listing_and_no_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # A listing that is quick
    bucket = Bucket()
    Timer(0.05, bucket.update, [{"storage": (1, 1)}]).start()
    assert list(bucket.figures())
    # One that never ends: once is enough
    bucket = Bucket()
    waited: list[float] = []
    monkeypatch.setattr(bucket._listed, "wait", waited.append)
    for _ in range(2):
        assert list(bucket.figures()) == []
    assert waited == [FIRST_SECS]
