"""What the stack needs of an S3 store, tried on a running one with objects of its own, which are gone afterwards."""

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import md5
from io import BytesIO
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen
from uuid import uuid4

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dagster_stack.objects.client import CLOCKS, new_client
from dagster_stack.objects.comparison import Place
from dagster_stack.objects.conditions import ABSENT, FOREIGN_ETAG, REFUSED, are_kept

#: Where its objects are, below the prefix of data.
FOLDER = "@check"
#: Writers of one object at once, and how often.
WRITERS, ROUNDS = 50, 3
#: Objects that are listed, and of them a page.
LISTED, PAGE = 25, 10
#: Bytes of the smallest part that has another one behind it, in every store.
PART = 5 << 20
#: Seconds that a clock may differ before somebody should look at it; requests are refused from 15 minutes on.
SKEW_SECS = 60
#: What a check has left behind whose process was killed goes after so long.
LEFT_BEHIND = timedelta(hours=1)
#: Where nobody listens whom the user means.
HERE = "From a container this host is host.docker.internal."
#: A name in S3 has so many bytes at most, and so many between two slashes.
LONGEST = "/".join(["n" * 250] * 3)
#: What names of assets, partitions and outputs have in them (`keys`).
NAMES = (
    "@assets/b29/orders.pickle", "@partitions/day=1,red.pickle", "50%25%2fa", "a:b~c", "Zürich/Ωμέγα/日本", "Case", "case",
    LONGEST,
)  # fmt: skip
#: What users may call an object.
ODD_NAMES = ("a b+c", "x!*'()", 'q"&<>;$#?|', "é", "e\u0301", "back\\slash", "tab\there")


class Lacking(Exception):
    """Raised when a store does otherwise; the message says how."""


@dataclass(frozen=True)
class Check:
    """One thing that a store must do. Without a `required` one the stack would lose data, or not work."""

    title: str
    without: str
    attempt: Callable[["Trial"], str]
    required: bool = True


@dataclass(frozen=True)
class Finding:
    check: Check
    is_kept: bool
    found: str


class Trial:
    """One bucket, and the folder in it that this trial has for itself."""

    def __init__(self, endpoint_url: str | None, bucket: str, data_prefix: str) -> None:
        # As the stack's own clients, but none that tries again what was refused.
        config = Config(
            signature_version="s3v4",
            max_pool_connections=WRITERS,
            retries={"total_max_attempts": 1},
            connect_timeout=10,
            read_timeout=30,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self.client = new_client(endpoint_url, config)
        #: As user code makes one, with the checksums that boto3 sends by itself.
        self.plain = new_client(endpoint_url)
        self.bucket = bucket
        self.all = f"{data_prefix}/{FOLDER}/"
        self.folder = f"{self.all}{uuid4()}/"
        #: Whether it could not be removed.
        self.is_left = False

    def where(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.folder}{name}"}

    def put(self, name: str, body: bytes, **options: Any) -> str:
        return str(self.client.put_object(**self.where(name), Body=body, **options)["ETag"])

    def get(self, name: str, **options: Any) -> bytes:
        body: bytes = self.client.get_object(**self.where(name), **options)["Body"].read()
        return body

    def listed(self, prefix: str = "", **options: Any) -> Iterator[str]:
        """Names below its folder, page by page."""
        for page in self.pages(self.folder + prefix, **options):
            yield from (entry["Key"].removeprefix(self.folder) for entry in page.get("Contents", ()))

    def pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        return iter(
            self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, **options
            )
        )

    def parts(self, name: str, bodies: Sequence[bytes]) -> dict[str, Any]:
        """An upload of these parts, as what completes it."""
        upload = {
            **self.where(name),
            "UploadId": self.client.create_multipart_upload(**self.where(name))["UploadId"],
        }
        sent = [
            {"PartNumber": number, "ETag": self.client.upload_part(**upload, PartNumber=number, Body=body)["ETag"]}
            for number, body in enumerate(bodies, 1)
        ]  # fmt: skip
        return {**upload, "MultipartUpload": {"Parts": sent}}

    def close(self) -> None:
        """Remove what is there of this trial, and of killed ones. Raises boto's errors."""
        try:
            old = datetime.now(UTC) - LEFT_BEHIND
            for page in self.pages(self.all):
                for entry in page.get("Contents", ()):
                    if entry["Key"].startswith(self.folder) or entry["LastModified"] < old:
                        self.client.delete_object(Bucket=self.bucket, Key=entry["Key"])
            with contextlib.suppress(ClientError):
                uploads = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.all)
                for upload in uploads.get("Uploads", ()):
                    if upload["Key"].startswith(self.folder) or upload["Initiated"] < old:
                        one = {name: upload[name] for name in ("Key", "UploadId")}
                        self.client.abort_multipart_upload(Bucket=self.bucket, **one)
        finally:
            self.client.close()
            self.plain.close()


def tried(trial: Trial) -> Iterator[Finding]:
    """Every check, one after the other; only the first where that one fails. Whatever happens, nothing is left behind by keys
    that may delete."""
    try:
        for check in CHECKS:
            try:
                finding = Finding(check, True, check.attempt(trial))
            except Lacking as lacking:
                finding = Finding(check, False, str(lacking))
            except (ClientError, BotoCoreError, OSError) as error:
                finding = Finding(check, False, said(error))
            yield finding
            if check is CHECKS[0] and not finding.is_kept:
                return
    finally:
        try:
            trial.close()
        except (ClientError, BotoCoreError):
            trial.is_left = True


#: What the name of an object of this check has in it, as an address has it.
FOLDER_IN_ADDRESS = quote(FOLDER)
#: Why a store does not answer, by words of the error.
SILENCE = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is by nobody who is trusted: name its authority's in TLS_CA_FILE.",
    "WRONG_VERSION_NUMBER": "it has no TLS there: write http://.",
    "//127.0.0.1": f"is it up? {HERE}",
    "//localhost": f"is it up? {HERE}",
}


def said(error: Exception) -> str:
    """What a store answered, and the cure where there is one that can't be told from that."""
    if not isinstance(error, ClientError):
        # Without the object's name, which is this check's own.
        text = re.sub(rf"(https?://[^/\s\"]+)[^\s\"]*{FOLDER_IN_ADDRESS}[^\s\"]*", r"\1", str(error))
        return f"no answer, {next((cure for words, cure in SILENCE.items() if words in text), 'is it up?')} {text}"
    told = error.response["Error"]
    cures = {
        "NoSuchBucket": "make the bucket, or correct S3_BUCKET",
        "InvalidAccessKeyId": "correct S3_ACCESS_KEY",
        "SignatureDoesNotMatch": "correct S3_SECRET_KEY",
        "AccessDenied": "the keys must be allowed to list the bucket, and to read, write and delete objects",
        "RequestTimeTooSkewed": CLOCKS,
    }
    cure = cures.get(told["Code"], told.get("Message", ""))
    return f"{error.operation_name}: {told['Code']}{f', {cure}' if cure else ''}"


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Lacking(otherwise)


def code(act: Callable[[], Any]) -> str:
    """What a store refuses this with; empty when it does it."""
    try:
        act()
        return ""
    except ClientError as error:
        return str(error.response["Error"]["Code"])


# --- objects ---------------------------------------------------------------------------------------------------------


def written_and_read(trial: Trial) -> str:
    # Some stores make a bucket for whoever writes into it.
    next(trial.pages(trial.folder))
    trial.put("object", b"one", ContentType="text/plain")
    answer = trial.client.get_object(**trial.where("object"))
    require(answer["Body"].read() == b"one", "other bytes came back")
    kind = answer.get("ContentType", "nothing")
    require(kind.startswith("text/plain"), f"its type came back as {kind}")
    trial.put("empty", b"")
    require(trial.get("empty") == b"", "an empty object came back with bytes")
    return "the same bytes, an empty object too"


def overwritten(trial: Trial) -> str:
    for number in range(20):
        trial.put("overwritten", b"%d" % number)
        read = trial.get("overwritten")
        require(read == b"%d" % number, f"write {number} was read as {read!r} right after it")
    return "20 of 20 were read right after they were written"


def headed(trial: Trial) -> str:
    etag = trial.put("headed", b"12345")
    head = trial.client.head_object(**trial.where("headed"))
    require((head["ETag"], head["ContentLength"]) == (etag, 5), "another ETag or size than was written")
    absent = code(partial(trial.client.head_object, **trial.where("absent")))
    require(absent in ABSENT, f"HEAD of what is not there is answered with {absent or 'an object'}")
    absent = code(partial(trial.get, "absent"))
    require(absent == "NoSuchKey", f"GET of what is not there is answered with {absent or 'an object'}")
    return "size and ETag; 404 for what is not there"


def etag_of_content(trial: Trial) -> str:
    first, same, other = (trial.put("etag", body) for body in (b"1", b"1", b"2"))
    require(first == same != other, "the ETag changes without the content, or stays with another one")
    digest = md5(b"1", usedforsecurity=False).hexdigest()
    return "the content's MD5" if first.strip('"') == digest else "of the content, not its MD5"


def ranges(trial: Trial) -> str:
    trial.put("range", b"0123456789")
    for asked, wanted in (("4-", b"456789"), ("2-5", b"2345")):
        read = trial.get("range", Range=f"bytes={asked}")
        require(read == wanted, f"bytes {asked} of 0123456789 came as {read!r}")
    beyond = code(partial(trial.get, "range", Range="bytes=10-"))
    require(beyond in ("InvalidRange", "416"), f"a range behind the end is answered with {beyond or 'bytes'}")
    return "from, to; 416 behind the end"


def names(trial: Trial) -> str:
    named(trial, "names/", NAMES)
    return f"letters of all languages, capitals, %, {len(LONGEST)} bytes"


def odd_names(trial: Trial) -> str:
    named(trial, "odd/", ODD_NAMES)
    return "blanks, quotes, accents in two parts, a backslash"


def named(trial: Trial, folder: str, wanted: Sequence[str]) -> None:
    for name in wanted:
        trial.put(f"{folder}{name}", name.encode())
    found = {name.removeprefix(folder) for name in trial.listed(folder)}
    for name in wanted:
        shown = name if len(name) < 40 else f"{len(name)} bytes"
        require(name in found, f"{shown!r} is not listed as it was written")
        require(trial.get(f"{folder}{name}") == name.encode(), f"{shown!r} is another object")


# --- listing and deletion --------------------------------------------------------------------------------------------


def pages(trial: Trial) -> str:
    names = [f"list/{number:02}" for number in range(LISTED)]
    for name in names:
        trial.put(name, b"x")
    trial.put("list/folder/inner", b"x")
    found = list(trial.listed("list/", PaginationConfig={"PageSize": PAGE}))
    require(len(found) == len(set(found)), "some objects were listed twice")
    require(set(found) == {*names, "list/folder/inner"}, f"{len(found)} of {LISTED + 1} objects were listed")
    require(list(trial.listed("list/1")) == names[10:20], "a prefix that is no whole folder finds others")
    top = next(trial.pages(f"{trial.folder}list/", Delimiter="/"))
    folders = [entry["Prefix"].removeprefix(trial.folder) for entry in top.get("CommonPrefixes", ())]
    require(folders == ["list/folder/"], f"folders are listed as {folders}")
    return f"{LISTED + 1} objects in pages of {PAGE}, prefixes, folders"


def sorted_names(trial: Trial) -> str:
    for name in ("b", "a-b", "a/b", "a.b"):
        trial.put(f"order/{name}", b"x")
    found = [name.removeprefix("order/") for name in trial.listed("order/")]
    require(found == ["a-b", "a.b", "a/b", "b"], f"in another order: {' '.join(found)}")
    return "by the bytes of the whole name"


def deleted(trial: Trial) -> str:
    trial.put("deleted", b"x")
    trial.client.delete_object(**trial.where("deleted"))
    require(list(trial.listed("deleted")) == [], "it is still listed right after that")
    require(code(partial(trial.get, "deleted")) == "NoSuchKey", "it is still there right after that")
    absent = code(partial(trial.client.delete_object, **trial.where("deleted")))
    require(not absent, f"of what is not there: {absent}")
    return "gone at once, again is no error"


def many_deleted(trial: Trial) -> str:
    names = [f"many/{number}" for number in range(10)]
    for name in names:
        trial.put(name, b"x")
    keys = [{"Key": trial.where(name)["Key"]} for name in names]
    answer = trial.plain.delete_objects(Bucket=trial.bucket, Delete={"Objects": keys})
    require(not answer.get("Errors"), f"{len(answer.get('Errors', ()))} of 10 were refused")
    require(list(trial.listed("many/")) == [], "some are still listed right after that")
    return "10 by one request"


# --- parts -----------------------------------------------------------------------------------------------------------


def large_objects(trial: Trial) -> str:
    bodies = [b"a" * PART, b"b" * 1000]
    upload = trial.parts("large", bodies)
    require(list(trial.listed("large")) == [], "it is listed before it is whole")
    trial.client.complete_multipart_upload(**upload)
    require(trial.get("large") == b"".join(bodies), "other bytes came back")
    hashes = b"".join(md5(body, usedforsecurity=False).digest() for body in bodies)
    wanted = f"{md5(hashes, usedforsecurity=False).hexdigest()}-2"
    etag = trial.client.head_object(**trial.where("large"))["ETag"].strip('"')
    return "two parts" if etag == wanted else f"two parts, with an ETag of its own kind ({etag})"


def aborted(trial: Trial) -> str:
    upload = trial.parts("aborted", [b"x"])
    del upload["MultipartUpload"]
    trial.client.abort_multipart_upload(**upload)
    require(list(trial.listed("aborted")) == [], "an object is there all the same")
    return "no object"


# --- conditions ------------------------------------------------------------------------------------------------------


def race(
    trial: Trial, name: str, prepared: Callable[[bytes], Callable[[], Any]], bodies: Sequence[bytes]
) -> None:
    """Let all write at once; raises Lacking unless exactly one has, and its bytes are there."""
    together = threading.Barrier(len(bodies))

    def attempt(body: bytes) -> str:
        try:
            write = prepared(body)
        except BaseException:
            together.abort()
            raise
        together.wait()
        try:
            return code(write)
        except BotoCoreError as error:
            # Others have an answer.
            return type(error).__name__

    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = [*zip(bodies, list(threads.map(attempt, bodies)), strict=True)]
    winners = [body for body, answer in answers if not answer]
    others = Counter(answer for _, answer in answers if answer and answer not in REFUSED)
    told = "".join(f", {count} got {answer}" for answer, count in others.items())
    require(len(winners) == 1, f"{len(winners)} of {len(bodies)} writers at once won{told}")
    require(trial.get(name) == winners[0], "not the winner's bytes are there")


#: What makes a write of these bytes under a name, for which there may be something to prepare.
Prepared = Callable[[str, bytes], Callable[..., Any]]


def raced(trial: Trial, kind: str, prepared: Prepared, replaced: bool) -> str:
    """Several times: where nothing is, or where one object is to be `replaced`; a late one is refused."""
    for number in range(ROUNDS):
        name = f"{kind}-{number}"
        condition = {"IfNoneMatch": "*"}
        if replaced:
            prepared(name, b"before")(**condition)
            condition = {"IfMatch": trial.client.head_object(**trial.where(name))["ETag"]}
        # No two write the same: an ETag would hold for both.
        bodies = [b"%d" % each for each in range(WRITERS)]
        race(trial, name, lambda body: partial(prepared(name, body), **condition), bodies)  # noqa: B023
        late = code(partial(prepared(name, b"late"), IfMatch=FOREIGN_ETAG))
        require(late in REFUSED, f"a late writer is answered with {late or 'success'}")
    return f"one of {WRITERS} writers won, {2 * ROUNDS} times"


def put_prepared(trial: Trial) -> Prepared:
    return lambda name, body: partial(trial.put, name, body)


def parts_prepared(trial: Trial) -> Prepared:
    return lambda name, body: partial(trial.client.complete_multipart_upload, **trial.parts(name, [body]))


def conditional_puts(trial: Trial) -> str:
    prepared = put_prepared(trial)
    raced(trial, "put", prepared, replaced=False)
    return raced(trial, "put-again", prepared, replaced=True)


def conditional_parts(trial: Trial) -> str:
    """One after the other, as a worker that was cut off is late by seconds."""

    def write(**condition: str) -> str:
        trial.client.complete_multipart_upload(**trial.parts("late", [b"x"]), **condition)
        return str(trial.client.head_object(**trial.where("late"))["ETag"])

    require(are_kept(write), "a late writer is not refused")
    return "a late writer is refused"


def parts_at_once(trial: Trial) -> str:
    prepared = parts_prepared(trial)
    raced(trial, "parts", prepared, replaced=False)
    return raced(trial, "parts-again", prepared, replaced=True)


# --- for others ------------------------------------------------------------------------------------------------------


def signed_links(trial: Trial) -> str:
    trial.put("linked", b"linked")
    link = trial.client.generate_presigned_url("get_object", Params=trial.where("linked"), ExpiresIn=600)
    with urlopen(link, timeout=30) as answer:
        require(answer.read() == b"linked", "other bytes came back")
    return "opened without keys"


def forged_links(trial: Trial) -> str:
    trial.put("forged", b"x")
    link = trial.client.generate_presigned_url("get_object", Params=trial.where("forged"), ExpiresIn=600)
    forged = link[:-1] + ("0" if link[-1] != "0" else "1")
    for address, what in (
        (forged, "a link with a forged signature"),
        (link.partition("?")[0], "no signature"),
    ):
        try:
            urlopen(address, timeout=30).close()
        except HTTPError as error:
            require(error.code in (400, 401, 403), f"{what} is answered with {error.code}")
        else:
            raise Lacking(f"opened with {what}")
    return "a forged link and a plain address are refused"


def checksums(trial: Trial) -> str:
    """The headers and trailers that boto3 sends unless it is told otherwise, as s3fs and others do."""
    trial.plain.put_object(**trial.where("checked"), Body=b"one")
    trial.plain.upload_fileobj(BytesIO(b"two"), trial.bucket, trial.where("checked-2")["Key"])
    read = trial.plain.get_object(**trial.where("checked"))["Body"].read()
    require((read, trial.get("checked-2")) == (b"one", b"two"), "other bytes came back")
    return "boto3 as it comes"


def expiry(trial: Trial) -> str:
    """Only read: rules may be others'."""
    try:
        trial.client.get_bucket_lifecycle_configuration(Bucket=trial.bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] == "AccessDenied":
            return "these keys may not look; in the stack's own MinIO `init` sees to it"
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
    return "there are rules, or can be"


def no_versions(trial: Trial) -> str:
    try:
        status = trial.client.get_bucket_versioning(Bucket=trial.bucket).get("Status", "off")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("AccessDenied", "NotImplemented", "501"):
            return "these keys may not look, or the store has none"
        raise
    require(status != "Enabled", "the bucket keeps old versions")
    return str(status).lower()


def clocks(trial: Trial) -> str:
    skew = Place(trial.client, trial.bucket, trial.folder).clock_skew()
    require(skew < SKEW_SECS, f"{skew:.0f} s apart: set both by NTP")
    return f"{skew:.0f} s apart"


LATE = "a worker that was cut off overwrites the output of the one that took its place"
CHECKS = (
    Check("write and read", "nothing works", written_and_read),
    Check("overwrite", "a step reads what was there before", overwritten),
    Check("size, ETag, 404", "no input is found, nor said to be missing", headed),
    Check("conditional put", LATE, conditional_puts),
    Check("conditional multipart", f"{LATE}, from 16 MB on", conditional_parts),
    Check("multipart at once", "of two that write the same output above 16 MB in one moment either may win",
          parts_at_once, required=False),
    Check("multipart", "no output above 16 MB", large_objects),
    Check("abort of multipart", "parts of failed uploads take room", aborted, required=False),
    Check("ranges", "no page follows a step's output", ranges),
    Check("names", "assets and partitions with such keys are lost", names),
    Check("odd names", "objects of yours must not have such names", odd_names, required=False),
    Check("list, page by page", "sensors miss objects, retention leaves some", pages),
    Check("order of a list", "`store.list` is not in key order", sorted_names, required=False),
    Check("delete", "retention fails", deleted),
    Check("delete many", "s3fs and such can't delete in user code", many_deleted, required=False),
    Check("ETag by content", "the same file put again is new to sensors", etag_of_content, required=False),
    Check("signed links", "links to step output and reports don't open", signed_links),
    Check("forged links refused", "whoever reaches the store reads all", forged_links, required=False),
    Check("boto3's checksums", "user code must switch them off", checksums, required=False),
    Check("expiry rules", "old step logs stay", expiry, required=False),
    Check("no versions", "what is deleted takes room for ever", no_versions, required=False),
    Check("clocks", "requests are refused from 15 minutes on", clocks, required=False),
)  # fmt: skip
