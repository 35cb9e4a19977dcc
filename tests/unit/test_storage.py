"""The object store's contract, held by local files and by a real S3 server alike."""

import io
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from dagster import FilesystemIOManager

from dagster_stack import ObjectNotFound, ObjectStore, stack_resources
from dagster_stack.objects.client import presigned_link, s3_client
from dagster_stack.objects.io_manager import S3IOManager
from dagster_stack.objects.object_store import UNFINISHED, LocalObjectStore, S3ObjectStore
from dagster_stack.settings import S3Settings, Settings
from tests.unit.seaweed import BUCKET


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "local":
        return LocalObjectStore(folder=str(tmp_path / "store"))
    url = request.getfixturevalue("s3_url")
    store = S3ObjectStore(bucket=BUCKET, endpoint_url=url, public_url=url)
    for entry in list(store.list("")):
        store.delete(entry.key)
    return store


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


# --- the contract -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"hello", os.urandom(100_000)], ids=["empty", "text", "binary"])
def test_what_is_put_is_got(store: ObjectStore, data: bytes) -> None:
    store.put("a/b.bin", data, "text/plain")

    assert store.get("a/b.bin") == data


def test_a_file_is_put_as_its_content(store: ObjectStore) -> None:
    store.put("a", io.BytesIO(b"from a file"))

    assert store.get("a") == b"from a file"


def test_an_object_put_again_is_replaced(store: ObjectStore) -> None:
    store.put("a", b"a long first version")
    store.put("a", b"second")

    assert store.get("a") == b"second"
    assert [entry.size for entry in store.list("")] == [6]


@pytest.mark.parametrize("key", ["none", "folder", "folder/file/below", "folder/none"])
def test_what_is_not_there_is_not_found_with_its_address(store: ObjectStore, key: str) -> None:
    store.put("folder/file", b"1")

    with pytest.raises(ObjectNotFound, match=f"There is no .*{key}"):
        store.get(key)


def test_an_opened_object_is_a_file_with_a_path_of_the_same_kind(store: ObjectStore) -> None:
    store.put("inbox/a.csv", b"1,2\n3,4\n")

    with store.opened("inbox/a.csv") as file:
        assert file.readline() == b"1,2\n"
        assert Path(file.name).suffix == ".csv"
        assert Path(file.name).read_bytes() == b"1,2\n3,4\n"
        name = file.name

    assert not Path(name).exists()


def test_a_listing_is_in_the_order_of_keys_and_of_the_prefix_alone(store: ObjectStore) -> None:
    # Given keys whose order as paths is another one
    for key in ("in/b", "in-box", "in/a", "in/a.b", "in/a/c", "other", "in/.hidden", "In/z"):
        if key != "in/a/c" or isinstance(store, S3ObjectStore):
            store.put(key, key.encode())
    store.put("in/d/e", b"12345")

    listed = [entry for entry in store.list("in") if entry.key != "in/a/c"]
    if isinstance(store, S3ObjectStore):
        # SeaweedFS goes folder by folder; Amazon and MinIO list by key.
        listed.sort(key=lambda entry: entry.key)

    assert [entry.key for entry in listed] == ["in-box", "in/.hidden", "in/a", "in/a.b", "in/b", "in/d/e"]
    assert listed[-1].size == 5
    assert keys(store, "in/a.") == ["in/a.b"]
    assert keys(store, "nothing") == []


def test_a_store_that_nothing_was_ever_put_into_is_empty(store: ObjectStore) -> None:
    assert keys(store) == []


def test_an_etag_changes_with_the_content_and_only_with_it(store: ObjectStore) -> None:
    """The inbox sensor takes an object once, and again when it changed: also when the size is the same."""

    def etag() -> str:
        (entry,) = store.list("a")
        return entry.etag

    store.put("a", b"one")
    first = etag()
    assert etag() == first

    store.put("a", b"two")
    assert etag() != first

    store.put("a", b"one")
    assert etag() == first


def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(store: ObjectStore) -> None:
    store.put("a/b", b"1")
    store.put("a/c", b"1")

    store.delete("a/b")
    store.delete("a/b")
    store.delete("a/b/c")

    assert keys(store) == ["a/c"]


@pytest.mark.parametrize("key", ["ünïcode/ключ.csv", "with space & sign+.csv", "percent%20.csv", "a=b,c.csv"])
def test_any_key_finds_its_object(store: ObjectStore, key: str) -> None:
    store.put(key, b"1")

    assert keys(store) == [key]
    assert store.get(key) == b"1"


def test_a_reader_sees_the_old_object_or_the_new_one(store: ObjectStore) -> None:
    # Given a writer that is stopped in the middle of a new version
    store.put("a", b"old")
    middle, go_on = threading.Event(), threading.Event()

    class SlowFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            piece = super().read(3)
            if self.tell() > 3:
                middle.set()
                go_on.wait(10)
            return piece

    writer = threading.Thread(target=store.put, args=("a", SlowFile(b"the new one")))
    writer.start()
    assert middle.wait(10)

    # When somebody reads and lists, then it is the old one and nothing else
    assert store.get("a") == b"old"
    assert keys(store) == ["a"]

    # And the new one when the writer is done
    go_on.set()
    writer.join(20)
    assert store.get("a") == b"the new one"


def test_a_put_that_fails_leaves_the_old_object_and_no_rest(store: ObjectStore, tmp_path: Path) -> None:
    class BrokenFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("the disk is gone")

    store.put("a", b"old")

    with pytest.raises(OSError, match="the disk is gone"):
        store.put("a", BrokenFile(b"new"))

    assert store.get("a") == b"old"
    assert keys(store) == ["a"]
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))


def test_a_link_opens_without_keys(store: ObjectStore) -> None:
    store.put("reports/a b.html", b"<html>", "text/html")

    with urllib.request.urlopen(store.link("reports/a b.html")) as response:
        assert response.read() == b"<html>"
        assert response.headers["Content-Type"] == "text/html"


# --- local files alone ----------------------------------------------------------------------------------------

ACTIONS: list[Callable[[ObjectStore, str], object]] = [
    lambda store, key: store.put(key, b"1"),
    lambda store, key: store.get(key),
    lambda store, key: store.delete(key),
    lambda store, key: store.uri(key),
]


@pytest.mark.parametrize("key", ["../secret", "a/../../secret", "/etc/passwd", "", ".", "link/secret"])
@pytest.mark.parametrize("action", ACTIONS, ids=["put", "get", "delete", "uri"])
def test_no_key_leaves_the_folder(
    tmp_path: Path, key: str, action: Callable[[ObjectStore, str], object]
) -> None:
    # Given a file beside the store, and a link to it within
    (tmp_path / "secret").write_text("secret")
    store = LocalObjectStore(folder=str(tmp_path / "store"))
    store.put("a/b", b"1")
    (tmp_path / "store" / "link").symlink_to(tmp_path)

    with pytest.raises(ObjectNotFound, match="leaves the store's folder"):
        action(store, key)

    assert (tmp_path / "secret").read_text() == "secret"


def test_an_object_that_goes_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalObjectStore(folder=str(tmp_path))
    store.put("a", b"1")
    store.put("b", b"1")
    listing = store.list("")
    next(listing)

    store.delete("b")

    assert list(listing) == []


# --- S3 alone ---------------------------------------------------------------------------------------------------


def test_a_listing_has_more_than_one_page(s3_url: str) -> None:
    store = S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url)
    names = [f"many/{number:04d}" for number in range(1003)]
    client = s3_client(s3_url)
    for name in names:
        client.put_object(Bucket=BUCKET, Key=name, Body=b"")

    assert keys(store, "many/") == names


def test_another_error_than_not_found_is_not_called_so(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    # boto3 reads the keys once.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()
    store = S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url)

    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        store.get("a")

    s3_client(s3_url).close()
    s3_client.cache_clear()


def test_a_link_is_on_the_public_address_and_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    link = presigned_link("http://127.0.0.1:9000", "dagster", "reports/a.html")

    assert link.startswith("http://127.0.0.1:9000/dagster/reports/a.html?")
    assert "X-Amz-Expires=604800" in link


def test_a_link_that_was_tampered_with_is_refused(s3_url: str) -> None:
    store = S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url, public_url=s3_url)
    store.put("a", b"1")
    store.put("b", b"2")

    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(store.link("a").replace("/a?", "/b?"))

    assert refusal.value.code == 403
    refusal.value.close()


# --- the resources of every job ---------------------------------------------------------------------------------


def settings(s3: S3Settings | None, folder: Path) -> Settings:
    return Settings(
        s3=s3, store_folder=folder, broker_folder=folder / "broker", celery_yaml=folder / "celery.yaml"
    )


def test_without_a_bucket_everything_is_in_local_files(tmp_path: Path) -> None:
    resources = stack_resources(settings(None, tmp_path))

    assert isinstance(resources["store"], LocalObjectStore)
    assert isinstance(resources["io_manager"], FilesystemIOManager)
    assert resources["store"].folder == str(tmp_path)
    assert resources["io_manager"].base_dir == str(tmp_path / "storage")


def test_with_a_bucket_everything_is_in_it(tmp_path: Path) -> None:
    resources = stack_resources(
        settings(S3Settings("b", "http://minio:9000", "http://127.0.0.1:9000"), tmp_path)
    )

    assert isinstance(resources["store"], S3ObjectStore)
    assert isinstance(resources["io_manager"], S3IOManager)
    assert resources["store"].public_url == "http://127.0.0.1:9000"
    assert resources["io_manager"].bucket == "b"
    assert resources["io_manager"].prefix == "storage"
    assert resources["io_manager"].endpoint_url == "http://minio:9000"


def test_two_stacks_share_a_bucket_by_their_prefixes(s3_url: str) -> None:
    """Who uses a store does not see its prefix; addresses have it."""
    one, other = (
        S3ObjectStore(bucket=BUCKET, endpoint_url=s3_url, public_url=s3_url, key_prefix=prefix)
        for prefix in ("one/", "other/")
    )
    for store in (one, other):
        store.put("inbox/a", store.key_prefix.encode())

    for store in (one, other):
        assert store.get("inbox/a") == store.key_prefix.encode()
        assert [entry.key for entry in store.list("inbox/")] == ["inbox/a"]
        assert store.uri("inbox/a") == f"s3://{BUCKET}/{store.key_prefix}inbox/a"
        assert f"/{store.key_prefix}inbox/a?" in store.link("inbox/a")
    one.delete("inbox/a")
    assert list(one.list("")) == []
    assert other.get("inbox/a") == b"other/"
