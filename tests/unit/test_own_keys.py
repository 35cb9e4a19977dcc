"""The stack's bucket is the platform's with its own keys: a project may have other ones, under the names that all libraries know."""

import pytest

from dagster_stack.objects.client import s3_client
from dagster_stack.settings import Settings
from tests.unit.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY


def test_the_platform_uses_its_own_keys_whatever_a_project_has(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the stack's keys, and a project's of another store
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", BUCKET)
    monkeypatch.setenv("DAGSTER_STACK_S3_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("DAGSTER_STACK_S3_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("DAGSTER_STACK_S3_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    s3_client.cache_clear()

    # Then what the platform does goes to its own
    place = Settings.from_environment().s3
    assert place
    client = s3_client(place.endpoint_url)
    client.put_object(Bucket=BUCKET, Key="own-keys", Body=b"x")
    assert client.get_object(Bucket=BUCKET, Key="own-keys")["Body"].read() == b"x"
    client.close()
