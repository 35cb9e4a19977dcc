"""Whether the object store supports conditional writes, by which it refuses late ones: `init` tries it, workers know it.

Some stores answer 501 to them, others ignore them: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

import contextlib
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from dagster_stack.store.facts import Facts

logger = logging.getLogger(__name__)

#: The fact: where the store is, and by kind of write whether it keeps conditions.
FACT = "s3.conditions"
#: How the name of the fact begins that a run's log says it.
TOLD = "unfenced/"
#: Days after which that is forgotten.
TOLD_DAYS = 30
#: What S3 answers when nothing is there, and when something else is there than was expected.
ABSENT = {"404", "NoSuchKey", "NotFound"}
REFUSED = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
#: No object's.
FOREIGN_ETAG = '"00000000000000000000000000000000"'

UNFENCED = (
    "The S3 store does not support conditional writes (If-None-Match, If-Match), so outputs are written without. A worker"
    " that was paused, or cut off, until another one had its step may overwrite that one's output when it comes back."
    " A store with conditional writes refuses that (docs/reliability.md)."
)


class Write(StrEnum):
    """The two requests that make an object."""

    PUT = "put"
    MULTIPART = "multipart"


class Conditions:
    """What is known of one bucket's store; conditions that were not tried count as supported."""

    def __init__(self, place: str, facts: Facts | None = None) -> None:
        self._place, self._facts = place, facts
        fact = facts.read(FACT) if facts else None
        #: An IO manager of the user's own may have another store: what it finds out there is no fact of the stack's.
        self._is_the_stacks = fact is None or fact["place"] == place
        found = fact["kept"] if fact and self._is_the_stacks else {}
        self._kept = {kind: bool(found.get(kind, True)) for kind in Write}

    def keeps(self, kind: Write) -> bool:
        return self._kept[kind]

    @property
    def keeps_any(self) -> bool:
        return any(self._kept.values())

    def lose(self, kind: Write) -> None:
        """The store has just said that it does not support them: tell all processes."""
        self._kept[kind] = False
        if self._is_the_stacks:
            note(self._facts, self._place, self._kept)

    def to_be_told(self, run_id: str) -> bool:
        """Whether a run's log must say that its outputs are not fenced, and does not yet."""
        return not all(self._kept.values()) and bool(self._facts and self._facts.note_once(f"{TOLD}{run_id}"))


def note(facts: Facts | None, place: str, kept: dict[Write, bool]) -> None:
    if facts:
        facts.note(FACT, {"place": place, "kept": {kind.value: value for kind, value in kept.items()}})


def place_of(bucket: str, endpoint_url: str | None) -> str:
    """The name of a store and bucket."""
    return f"{endpoint_url or 'Amazon S3'} {bucket}"


def is_unknown(error: ClientError) -> bool:
    """Whether the store says that it has no conditional writes."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status == 501 or error.response["Error"]["Code"] in ("501", "NotImplemented")


def probe(client: Any, bucket: str, folder: str) -> dict[Write, bool]:
    """Try it with objects of its own, which are gone afterwards. Raises boto's errors when the store answers otherwise."""
    where = {"Bucket": bucket, "Key": f"{folder}/@probe/{uuid4()}"}

    def put(**condition: str) -> str:
        return str(client.put_object(**where, Body=b"probe", **condition)["ETag"])

    def multipart(**condition: str) -> str:
        upload = {**where, "UploadId": client.create_multipart_upload(**where)["UploadId"]}
        try:
            etag = client.upload_part(**upload, PartNumber=1, Body=b"probe")["ETag"]
            parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
            client.complete_multipart_upload(**upload, MultipartUpload=parts, **condition)
            return str(client.head_object(**where)["ETag"])
        except ClientError:
            with contextlib.suppress(ClientError, BotoCoreError):
                client.abort_multipart_upload(**upload)
            raise

    found = {}
    for kind, write in ((Write.PUT, put), (Write.MULTIPART, multipart)):
        try:
            found[kind] = are_kept(write)
        finally:
            client.delete_object(**where)
    return found


def are_kept(write: Callable[..., str]) -> bool:
    """Whether a write whose condition holds is done, and one whose condition does not is refused. At first nothing is there."""
    try:
        etag = write(IfNoneMatch="*")
        if not is_refused(write, IfNoneMatch="*"):
            return False
        write(IfMatch=etag)
        return is_refused(write, IfMatch=FOREIGN_ETAG)
    except ClientError as error:
        if is_unknown(error) or error.response["Error"]["Code"] in {
            *REFUSED,
            *ABSENT,
            "InvalidArgument",
            "400",
        }:
            return False
        raise


def is_refused(write: Callable[..., str], **condition: str) -> bool:
    try:
        write(**condition)
    except ClientError as error:
        if error.response["Error"]["Code"] in REFUSED:
            return True
        raise
    return False
