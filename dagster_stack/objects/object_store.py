"""Where data lies: one object store and one IO manager, on S3 in the stack and in local files without it."""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, md5
from pathlib import Path
from typing import IO, BinaryIO

from botocore.exceptions import ClientError
from dagster import ConfigurableResource

from dagster_stack.errors import InvalidKey, ObjectNotFound
from dagster_stack.objects import keys
from dagster_stack.objects.client import presigned_link, s3_client

#: How the name of a local file starts that is still being written.
UNFINISHED = ".unfinished-"
#: What a file system says where there is no such file.
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class StoredObject:
    """One entry of a listing: `size` in bytes; `etag` changes with the content."""

    key: str
    size: int
    etag: str


class ObjectStore(ConfigurableResource, ABC):
    """Bytes under keys such as `inbox/a.csv`. Keys use `/` and never start with one."""

    @abstractmethod
    def put(self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream") -> None:
        """Write a whole object; a reader sees the old one or the new one, never a part. Raises InvalidKey."""

    @abstractmethod
    def download(self, key: str, file: IO[bytes]) -> None:
        """Copy an object into an open binary file in pieces; raises ObjectNotFound."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key starts with `prefix`, in key order."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """The address for logs and people: `s3://bucket/key` or `file:///…`."""

    @abstractmethod
    def link(self, key: str) -> str:
        """An address that opens in the user's browser, for at most 7 days."""

    def get(self, key: str) -> bytes:
        """A whole object in memory; raises ObjectNotFound. For large ones use `opened`."""
        with self.opened(key) as file:
            return file.read()

    @contextmanager
    def opened(self, key: str) -> Iterator[IO[bytes]]:
        """An object as a seekable temporary file, which has a path as `.name`; raises ObjectNotFound."""
        with tempfile.NamedTemporaryFile(suffix=Path(key).suffix) as file:
            self.download(key, file)
            file.flush()
            file.seek(0)
            yield file


class S3ObjectStore(ObjectStore):
    """The bucket of the stack. Keys and region come from boto3's own variables."""

    bucket: str
    endpoint_url: str | None = None
    public_url: str | None = None
    #: What the keys begin with in the bucket, and not for who uses this store.
    key_prefix: str = ""

    def put(self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream") -> None:
        require_storable(key, self._key(key))
        client = s3_client(self.endpoint_url)
        if isinstance(data, bytes):
            client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, ContentType=content_type)
        else:
            client.upload_fileobj(data, self.bucket, self._key(key), ExtraArgs={"ContentType": content_type})

    def download(self, key: str, file: IO[bytes]) -> None:
        try:
            s3_client(self.endpoint_url).download_fileobj(self.bucket, self._key(key), file)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey") or keys.problem(key):
                raise ObjectNotFound(f"There is no {self.uri(key)}.") from error
            raise

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = s3_client(self.endpoint_url).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self._key(prefix)):
            for entry in page.get("Contents", []):
                key = entry["Key"].removeprefix(self.key_prefix)
                yield StoredObject(key, entry["Size"], entry["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        s3_client(self.endpoint_url).delete_object(Bucket=self.bucket, Key=self._key(key))

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def link(self, key: str) -> str:
        return presigned_link(self.public_url, self.bucket, self._key(key))

    def _key(self, key: str) -> str:
        return f"{self.key_prefix}{key}"


class LocalObjectStore(ObjectStore):
    """A folder that behaves like the bucket, for the embedded mode."""

    folder: str

    def put(self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream") -> None:
        path = self._path(key)
        require_storable(key)
        with replaced(path) as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                shutil.copyfileobj(data, file)

    def download(self, key: str, file: IO[bytes]) -> None:
        try:
            with self._path(key).open("rb") as source:
                shutil.copyfileobj(source, file)
        except OSError as error:
            if isinstance(error, ABSENT) or keys.problem(key):
                raise ObjectNotFound(f"There is no {self.uri(key)}.") from error
            raise

    def list(self, prefix: str) -> Iterator[StoredObject]:
        root = Path(self.folder)
        # By the whole key, as S3 does: paths would sort `a/b` before `a-b`.
        for key, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*")):
            if key.startswith(prefix) and not path.name.startswith(UNFINISHED):
                # It may go, or be a folder.
                with suppress(FileNotFoundError, IsADirectoryError):
                    stat = path.stat()
                    yield StoredObject(
                        key, stat.st_size, content_version(path, stat.st_mtime_ns, stat.st_size)
                    )

    def delete(self, key: str) -> None:
        with suppress(*ABSENT):
            self._path(key).unlink()

    def uri(self, key: str) -> str:
        return self._path(key).as_uri()

    def link(self, key: str) -> str:
        return self.uri(key)

    def _path(self, key: str) -> Path:
        root = Path(self.folder).resolve()
        try:
            path = (root / key).resolve()
        except ValueError as error:
            raise InvalidKey(f"The key {key!r} can't be a file's: {error}. Choose another one.") from error
        if root not in path.parents:
            raise InvalidKey(f"The key {key!r} leaves the store's folder {root}.")
        return path


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its place by a rename at the end: a reader must not meet half an object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=UNFINISHED, delete=False) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)


def require_storable(key: str, whole: str = "") -> None:
    """Raise InvalidKey when not every store can hold an object of that name, which is `whole` in the bucket."""
    if problem := keys.problem(key) or keys.problem(whole or key):
        raise InvalidKey(f"The key {key!r} can't be an object's: {problem}. Choose another one.")


@lru_cache(maxsize=10_000)
def content_version(path: Path, modified_ns: int, size: int) -> str:
    """A file's ETag: of its content, as S3's, so that the same bytes put again are no new object."""
    with path.open("rb") as file:
        return file_digest(file, lambda: md5(usedforsecurity=False)).hexdigest()
