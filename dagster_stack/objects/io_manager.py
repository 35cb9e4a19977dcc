"""What one step hands to the next: pickled objects in S3, streamed, on the process's own client."""

import io
import logging
import pickle
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import md5
from typing import Any

from botocore.exceptions import ClientError
from dagster import ConfigurableIOManager, InputContext, MetadataValue, OutputContext
from dagster._core.storage.upath_io_manager import UPathIOManager
from dagster_aws.s3.io_manager import PickledObjectS3IOManager
from upath import UPath

from dagster_stack.objects.client import s3_client
from dagster_stack.objects.conditions import (
    ABSENT,
    REFUSED,
    UNFENCED,
    Conditions,
    Write,
    is_unknown,
    place_of,
)
from dagster_stack.objects.pickles import PICKLE_PROTOCOL, Pickles
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.ledger import stack_storage

logger = logging.getLogger(__name__)

#: Bytes from which an object is sent in parts, and the size of a part. S3 allows 10,000 parts: 160 GB.
PART_SIZE = 16 << 20
#: Parts on their way at once: what an upload needs in memory beside the object itself is twice that.
PARTS_AT_ONCE = 3
#: Bytes that one read of a download asks for.
READ_SIZE = 1 << 20
#: Tries to write an object that other executions overwrite meanwhile.
MOST_TRIES = 5


class S3IOManager(ConfigurableIOManager):
    """dagster-aws's `S3PickleIOManager` with names of its own (`keys`), fast for small and large objects.

    What that one stored is found.

    It keeps its client (a new one takes 120 ms), asks S3 nothing beforehand, and streams: a step needs
    memory for its object and some 100 MB at most, not for a second copy of it.
    """

    bucket: str
    prefix: str
    endpoint_url: str | None = None

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        self._pickles().handle_output(context, obj)

    def load_input(self, context: InputContext) -> Any:
        return self._pickles().load_input(context)

    def _pickles(self) -> "PickledObjects":
        return pickled_objects(self.bucket, self.prefix, self.endpoint_url)


class PickledObjects(Pickles):
    """One place in the bucket."""

    def __init__(self, bucket: str, prefix: str, client: Any, place: str = "") -> None:
        prefix = "/".join(part for part in prefix.split("/") if part)
        super().__init__(prefix, FormerNames(prefix))
        self.bucket = bucket
        self.s3 = client
        self._place = place
        self._conditions: Conditions | None = None

    def dump(self, context: OutputContext, obj: Any, key: str) -> None:
        storage = fencing_storage(context)
        target = self._fenced(key, storage, context) if storage else None
        if target and context.has_asset_key:
            # An asset's object is there already, as a rule: to learn that by a refused upload would cost one.
            target.expect_what_is_there()
        with S3Writer(self.s3, self.bucket, key, target) as file:
            pickle.dump(obj, file, PICKLE_PROTOCOL)

    def _fenced(self, key: str, storage: PooledEventLogStorage, context: OutputContext) -> "FencedObject":
        if self._conditions is None:
            # Once a process: whatever it can do, the store does for years.
            self._conditions = Conditions(self._place, storage.facts)
        conditions = self._conditions
        check = partial(storage.check_lease, context.run_id)

        def tell(text: str) -> None:
            if conditions.to_be_told(context.run_id):
                context.log.warning(text)

        return FencedObject(self.s3, self.bucket, key, check, conditions=conditions, tell=tell)

    def load(self, key: str) -> Any:
        try:
            body = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"]
        except self.s3.exceptions.NoSuchKey:
            raise FileNotFoundError(f"There is no {self._uri(key)}.") from None
        with body:
            # Large buffers are read straight into their place.
            return pickle.load(io.BufferedReader(body, READ_SIZE))

    def exists(self, key: str) -> bool:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=key, MaxKeys=1)
        return any(entry["Key"] == key for entry in found.get("Contents", ()))

    def places(self, key: str) -> dict[str, MetadataValue[Any]]:
        return {"path": MetadataValue.path(key), "uri": MetadataValue.path(self._uri(key))}

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"


class FormerNames(PickledObjectS3IOManager):
    """dagster-aws's IO manager, for the names that it gave."""

    def __init__(self, prefix: str) -> None:
        # Not its own, which lists the bucket first.
        UPathIOManager.__init__(self, base_path=UPath(prefix))


def fencing_storage(context: OutputContext) -> PooledEventLogStorage | None:
    """The storage that knows whether the step is still this process's; None where steps have no leases."""
    step = context._step_context
    storage = stack_storage(step.instance) if step else None
    return storage if step and storage and storage.lease_for(step.run_id) else None


class FencedObject:
    """An object that an execution overwrites only while its step is its own, by conditional requests.

    It expects no object there, or the very one that was there before it asked whether the step is still its own:
    one that was frozen in between finds another. https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    Where the store does not keep conditions, it asks before it writes, and `tell` gets a warning.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        key: str,
        check: Callable[[], None],
        *,
        conditions: Conditions | None = None,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self._client = client
        self._where = {"Bucket": bucket, "Key": key}
        self._check = check
        self._conditions = conditions or Conditions(place_of(bucket, None))
        self._tell = tell
        self._expected: dict[str, str] = {"IfNoneMatch": "*"}

    def expect_what_is_there(self) -> None:
        """Overwrite what is there now; raises Fenced."""
        if self._conditions.keeps_any:
            try:
                self._expected = {"IfMatch": self._client.head_object(**self._where)["ETag"]}
            except ClientError as error:
                if error.response["Error"]["Code"] not in ABSENT:
                    raise
                self._expected = {"IfNoneMatch": "*"}
        self._check()

    def write(self, send: Callable[..., Any], kind: Write = Write.PUT) -> None:
        """Call `send` with the condition under which it may write; raises Fenced."""
        for _ in range(MOST_TRIES):
            keeps = self._conditions.keeps(kind)
            if not keeps or kind is Write.MULTIPART:
                # Some stores let several win that complete an upload at the same moment.
                self._check()
            if not keeps:
                send()
                return
            try:
                send(**self._expected)
                return
            except ClientError as error:
                if is_unknown(error):
                    self._conditions.lose(kind)
                    self._tell(f"{UNFENCED} It said: {error}")
                    continue
                code = error.response["Error"]["Code"]
                # Absent: the object was deleted.
                if code not in REFUSED and not (code in ABSENT and "IfMatch" in self._expected):
                    raise
            # A lost execution wrote it, or this one, by a request whose answer was lost.
            self.expect_what_is_there()
        raise OSError(f"{self._where['Key']} is written by others all the time")


@lru_cache
def pickled_objects(bucket: str, prefix: str, endpoint_url: str | None) -> PickledObjects:
    return PickledObjects(bucket, prefix, s3_client(endpoint_url), place_of(bucket, endpoint_url))


class S3Writer(io.RawIOBase):
    """A file to write whose content is one object in S3 once it is closed; after an error there is none."""

    def __init__(self, client: Any, bucket: str, key: str, fenced: FencedObject | None = None) -> None:
        self._client = client
        self._where = {"Bucket": bucket, "Key": key}
        self._write_fenced: Callable[[Callable[..., Any], Write], Any] = (
            fenced.write if fenced else lambda send, _: send()
        )
        self._buffer = bytearray()
        self._upload: MultipartUpload | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            for first in range(0, len(view), PART_SIZE):
                self._buffer += view[first : first + PART_SIZE]
                while len(self._buffer) >= PART_SIZE:
                    self._send_part()
            return len(view)

    def _send_part(self) -> None:
        if self._upload is None:
            self._upload = MultipartUpload(self._client, self._where)
        self._upload.add(bytes(self._buffer[:PART_SIZE]))
        del self._buffer[:PART_SIZE]

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._upload is None:
            if kind is None:
                put = partial(self._client.put_object, **self._where, Body=bytes(self._buffer))
                self._write_fenced(put, Write.PUT)
        elif kind is None:
            self._upload.add(bytes(self._buffer))
            self._upload.complete(self._write_fenced)
        else:
            self._upload.abort()
        self.close()


class MultipartUpload:
    """Parts of one object, some on their way at once. https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html"""

    def __init__(self, client: Any, where: dict[str, str]) -> None:
        self._client = client
        self._upload = {**where, "UploadId": client.create_multipart_upload(**where)["UploadId"]}
        self._threads = ThreadPoolExecutor(PARTS_AT_ONCE, "s3-part")
        self._on_their_way: deque[Future[dict[str, Any]]] = deque()
        self._parts: list[dict[str, Any]] = []
        self._count = 0

    def add(self, data: bytes) -> None:
        while len(self._on_their_way) >= PARTS_AT_ONCE:
            self._parts.append(self._on_their_way.popleft().result())
        self._count += 1
        self._on_their_way.append(self._threads.submit(self._send, self._count, data))

    def _send(self, number: int, data: bytes) -> dict[str, Any]:
        answer = self._client.upload_part(**self._upload, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def complete(self, write: Callable[[Callable[..., Any], Write], Any]) -> None:
        """Make the parts an object; `write` calls what does it."""
        try:
            self._parts += [part.result() for part in self._on_their_way]
            write(self._complete, Write.MULTIPART)
        except BaseException:
            self.abort()
            raise
        self._threads.shutdown()

    def _complete(self, **condition: str) -> None:
        parts = {"Parts": self._parts}
        try:
            self._client.complete_multipart_upload(**self._upload, MultipartUpload=parts, **condition)
        except ClientError as error:
            # The client has tried it again after an answer that was lost, or that said 503 of what was done.
            if error.response["Error"]["Code"] != "NoSuchUpload" or not self._is_complete():
                raise

    def _is_complete(self) -> bool:
        """Whether the object is there that these parts are."""
        hashes = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in self._parts)
        whole = f"{md5(hashes, usedforsecurity=False).hexdigest()}-{len(self._parts)}"
        where = {"Bucket": self._upload["Bucket"], "Key": self._upload["Key"]}
        return bool(self._client.head_object(**where)["ETag"].strip('"') == whole)

    def abort(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.abort_multipart_upload(**self._upload)
