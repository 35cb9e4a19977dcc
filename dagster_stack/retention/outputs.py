"""What runs have left in the bucket: the outputs of their ops, and what their steps printed."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from dagster_stack.errors import ObjectsForbidden
from dagster_stack.objects.keys import OUTPUTS, segment
from dagster_stack.retention.freed import Freed

#: What a store answers to keys that may not do it.
FORBIDDEN = ("AccessDenied", "AllAccessDisabled", "403")
#: Dagster's own names are under the same folder as `keys`', and so are those of S3ComputeLogs under that of logs.
LOGS = "storage"


class Outputs:
    """The objects of runs in a bucket. Raises boto's errors."""

    def __init__(self, client: Any, bucket: str, data_prefix: str, log_prefix: str) -> None:
        self._client, self._bucket = client, bucket
        self._data_prefix, self._log_prefix = data_prefix, log_prefix

    def folders(self, run_id: str) -> list[str]:
        """What the names of a run's objects begin with."""
        # A name of nothing would be that of all runs.
        assert run_id
        folder = segment(run_id)
        return list(
            dict.fromkeys(
                f"{prefix}/{name}/"
                for prefix in (f"{self._data_prefix}/{OUTPUTS}", f"{self._log_prefix}/{LOGS}")
                for name in (folder, run_id)
            )
        )

    def of(self, run_id: str, texts: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
        """Names and sizes of a run's objects, but those that one of some events' texts names, or a folder of them."""
        named = list(texts)
        pages = self._client.get_paginator("list_objects_v2")
        for folder in self.folders(run_id):
            for page in pages.paginate(Bucket=self._bucket, Prefix=folder):
                for entry in page.get("Contents", ()):
                    key = entry["Key"]
                    spellings = spelled(key, folder)
                    if not any(spelling in text for spelling in spellings for text in named):
                        yield key, entry["Size"]

    def count(self, runs: Iterable[str], kept: Iterable[tuple[str, str]] = ()) -> Freed:
        """What `remove` would."""
        return self._each(runs, kept, lambda key: None)

    def remove(self, runs: Iterable[str], kept: Iterable[tuple[str, str]] = ()) -> Freed:
        """Delete the objects of runs but those that events which stay, as pairs of run and text, name."""
        # One by one: not every store can delete many at once.
        return self._each(runs, kept, lambda key: self._client.delete_object(Bucket=self._bucket, Key=key))

    def _each(self, runs: Iterable[str], kept: Iterable[tuple[str, str]], act: Any) -> Freed:
        texts = defaultdict(list)
        for run, text in kept:
            texts[run].append(text)
        freed = Freed()
        try:
            for run in runs:
                for key, size in self.of(run, texts[run]):
                    act(key)
                    freed.add(Freed(objects=1, object_bytes=size))
        except ClientError as error:
            if error.response["Error"]["Code"] not in FORBIDDEN:
                raise
            raise ObjectsForbidden(
                f"Objects of old runs can't be removed from bucket {self._bucket}: {error}. Allow the stack's keys to list and"
                " delete there (s3:ListBucket, s3:DeleteObject), or set KEEP_RUNS_DAYS=0 in .env."
            ) from error
        return freed


def spelled(key: str, folder: str) -> set[str]:
    """How an event's text names an object, or a folder below the run's that holds it: there the text's name ends."""
    *steps, _ = key.removeprefix(folder).split("/")
    holders = [
        f"{folder}{'/'.join(steps[: size + 1])}{end}" for size in range(len(steps)) for end in ("", "/")
    ]
    return {
        f"{spelling}{end}"
        for name, end in ((key, ""), *((each, '"') for each in holders))
        for spelling in (name, json.dumps(name)[1:-1])
    }
