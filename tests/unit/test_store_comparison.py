"""Two stores side by side, and whether a move may go to one: real buckets."""

import io
from contextlib import suppress
from typing import Any

import pytest

from dagster_stack.client.store_comparison import told
from dagster_stack.errors import ProvisionError
from dagster_stack.objects.client import s3_client
from dagster_stack.objects.comparison import Comparison, Place, compared
from dagster_stack.services.ownership import require_marked_or_empty, require_no_other_stack
from tests.unit.seaweed import BUCKET

MARK = "storage/@stack/owner.json"


@pytest.fixture
def places(s3_url: str) -> tuple[Place, Place]:
    """Two buckets, empty. Each takes volumes of the server for ever, so all tests have the same."""
    client = s3_client(s3_url)
    found = []
    for bucket in (BUCKET, "other"):
        with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        place = Place(client, bucket, "")
        for key, _, _ in list(place.objects()):
            client.delete_object(Bucket=bucket, Key=key)
        found.append(place)
    return found[0], found[1]


def put(place: Place, **objects: bytes) -> None:
    for key, body in objects.items():
        place.client.put_object(Bucket=place.bucket, Key=key.replace("__", "/"), Body=body)


def put_in_parts(place: Place, key: str, body: bytes) -> None:
    where = {"Bucket": place.bucket, "Key": key}
    upload: dict[str, Any] = {**where, "UploadId": place.client.create_multipart_upload(**where)["UploadId"]}
    etag = place.client.upload_part(**upload, PartNumber=1, Body=body)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    place.client.complete_multipart_upload(**upload, MultipartUpload=parts)


def test_the_same_objects_are_the_same_by_hash_or_where_there_is_none_by_size(
    places: tuple[Place, Place],
) -> None:
    source, target = places
    for place in places:
        put(place, a=b"1", folder__b=b"22")
    put_in_parts(source, "large", b"xyz")
    put(target, large=b"xyz")

    assert compared(source, target) == Comparison(objects=3, size=6, by_hash=2)


def test_what_is_missing_too_much_or_other_is_named(places: tuple[Place, Place]) -> None:
    source, target = places
    put(source, a=b"1", b=b"2", c=b"3", same=b"s")
    put(target, b=b"22", c=b"4", d=b"5", same=b"s")

    found = compared(source, target)

    assert sorted(found.differing) == [
        "a: was not copied", "b: has 2 bytes instead of 1", "c: has other bytes", "d: is too much",
    ]  # fmt: skip
    assert told(found)[1:3] == ["4 objects differ:", "  a: was not copied"]


def test_one_prefix_is_compared_alone(places: tuple[Place, Place]) -> None:
    source, target = (Place(place.client, place.bucket, "mine/") for place in places)
    put(source, mine__a=b"1", others__b=b"2")
    put(target, mine__a=b"1")

    assert compared(source, target) == Comparison(objects=1, size=1, by_hash=1)


def test_a_bucket_with_objects_and_without_this_stacks_mark_is_no_target(
    places: tuple[Place, Place],
) -> None:
    _, target = places
    require_marked_or_empty(target, MARK)
    put(target, theirs=b"x")

    with pytest.raises(ProvisionError, match=r"has objects, such as theirs, and no mark of this stack"):
        require_marked_or_empty(target, MARK)

    put(target, **{MARK.replace("/", "__"): b"{}"})
    require_marked_or_empty(target, MARK)


def test_without_a_prefix_no_other_stack_may_share_the_bucket(places: tuple[Place, Place]) -> None:
    source, _ = places
    put(source, **{MARK.replace("/", "__"): b"{}"})
    require_no_other_stack(source, MARK)
    put(source, **{f"team-b/{MARK}".replace("/", "__"): b"{}"})

    with pytest.raises(ProvisionError, match="has objects of another stack under team-b/"):
        require_no_other_stack(source, MARK)

    require_no_other_stack(Place(source.client, source.bucket, "team-a/"), f"team-a/{MARK}")


def test_a_store_that_does_not_answer_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster_stack.client.store_comparison import compare_stores
    from dagster_stack.errors import ExitCode

    for variables in ("DAGSTER_STACK_S3_", "DAGSTER_STACK_FROM_S3_"):
        for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("BUCKET", "b"), ("ACCESS_KEY", "k"),
                            ("SECRET_KEY", "s"), ("REGION", "us-east-1")):  # fmt: skip
            monkeypatch.setenv(f"{variables}{name}", value)
    out = io.StringIO()

    assert compare_stores(out) is ExitCode.UNREACHABLE
    assert "The stores can't be compared" in out.getvalue()
