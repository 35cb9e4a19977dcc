"""Two S3 stores side by side: the one that `make move-s3` comes from, and the one that it goes to."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dagster_stack.objects.client import VARIABLES, new_client
from dagster_stack.settings import Settings

#: How the variables begin that name the store which a move comes from.
SOURCE = "DAGSTER_STACK_FROM_S3_"
#: An ETag that is the content's MD5, unless the store encrypts with keys of a service of its own.
MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Place:
    """A bucket, and what the keys of the stack's objects begin with in it."""

    client: Any
    bucket: str
    key_prefix: str

    @staticmethod
    def named(variables: str, environment: Mapping[str, str] = os.environ) -> "Place":
        """By variables that begin so. The prefix is that of the stack, since it stands in the event log."""
        settings = Settings.from_environment(environment)
        client = new_client(environment.get(f"{variables}ENDPOINT_URL") or None, variables=variables)
        bucket = environment[f"{variables}BUCKET"]
        return Place(client, bucket, settings.s3.key_prefix if settings.s3 else "")

    @staticmethod
    def target() -> "Place":
        return Place.named(VARIABLES)

    @staticmethod
    def source() -> "Place":
        return Place.named(SOURCE)

    def objects(self) -> Iterator[tuple[str, int, str]]:
        """Keys, sizes and ETags."""
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.key_prefix):
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry["Size"], entry["ETag"].strip('"')

    def clock_skew(self) -> float:
        """Seconds by which the store's clock differs from this machine's."""
        answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key_prefix, MaxKeys=1)
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return abs((datetime.now(UTC) - date).total_seconds())

    def is_encrypted_by_service(self, key: str) -> bool:
        """Whether an ETag says nothing of the content."""
        head = self.client.head_object(Bucket=self.bucket, Key=key)
        return "kms" in head.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in head


@dataclass
class Comparison:
    """What two places have in common, and where they differ."""

    objects: int = 0
    size: int = 0
    #: Of these, those whose content is the same by their ETags; of the others the size is.
    by_hash: int = 0
    #: Empty objects whose name ends in a slash, by which some programs mark folders: none is copied.
    marks: int = 0
    differing: list[str] = field(default_factory=list)


def compared(source: Place, target: Place) -> Comparison:
    """Every object of both. Raises boto's errors."""
    found = Comparison()
    there = {key: (size, etag) for key, size, etag in target.objects()}
    for key, size, etag in source.objects():
        copy = there.pop(key, None)
        if is_mark(key, size):
            found.marks += 1
        elif copy is None:
            found.differing.append(f"{key}: was not copied")
        elif size != copy[0]:
            found.differing.append(f"{key}: has {copy[0]} bytes instead of {size}")
        elif is_other_content(etag, copy[1]) and not any(
            place.is_encrypted_by_service(key) for place in (source, target)
        ):
            found.differing.append(f"{key}: has other bytes")
        else:
            found.objects += 1
            found.size += size
            found.by_hash += etag == copy[1]
    found.differing += [f"{key}: is too much" for key, (size, _) in there.items() if not is_mark(key, size)]
    return found


def is_mark(key: str, size: int) -> bool:
    return key.endswith("/") and not size


def is_other_content(etag: str, copy: str) -> bool:
    """Of objects in parts an ETag depends on the parts."""
    return etag != copy and all(MD5.fullmatch(each) for each in (etag, copy))
