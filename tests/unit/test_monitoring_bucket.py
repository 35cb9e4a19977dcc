"""The bucket as figures, from a listing of a real S3 store."""

from dagster_stack.monitoring.bucket import Bucket, Listing
from dagster_stack.storage.s3 import s3_client
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


def test_before_the_first_listing_nothing_is_said() -> None:
    assert list(Bucket().figures()) == []
