"""How much lies in the bucket: listed now and then, beside the scrapes, as a listing takes long and may cost money."""

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

logger = logging.getLogger(__name__)

#: Seconds between two listings at least; and that share of the time is spent on them at most.
INTERVAL_SECS = 60
SHARE = 0.05
#: Seconds that the very first figures wait for it: who looks once wants to see it, if it is quick.
FIRST_SECS = 3
#: Keys below no folder, or below a further one: users may make as many as they like.
OTHER = "other"


class Bucket:
    """The last listing as figures."""

    def __init__(self) -> None:
        self._sizes: Mapping[str, tuple[int, int]] = {}
        self._listed_at: float | None = None
        self._listed = threading.Event()
        self._is_first = True

    def update(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Keep objects and bytes by prefix."""
        self._sizes, self._listed_at = sizes, time.time()
        self._listed.set()

    def figures(self) -> Iterator[Metric]:
        """None before the first listing, which the very first figures wait for; their age is one of them, since a store
        that is away is not listed."""
        if self._is_first:
            self._is_first = False
            self._listed.wait(FIRST_SECS)
        if self._listed_at is None:
            return
        objects = GaugeMetricFamily("dagster_bucket_objects", "Objects in the bucket.", labels=["prefix"])
        size = GaugeMetricFamily("dagster_bucket_bytes", "Bytes in the bucket.", labels=["prefix"])
        for prefix, (number, total) in sorted(self._sizes.items()):
            objects.add_metric([prefix], number)
            size.add_metric([prefix], total)
        yield from (objects, size)
        yield GaugeMetricFamily(
            "dagster_bucket_listing_age_seconds",
            "Age of the figures of the bucket.",
            value=time.time() - self._listed_at,
        )


class Listing(threading.Thread):
    """Lists a bucket again and again, by the first part of the keys below `within`; only `prefixes` are told apart."""

    def __init__(
        self, client: Any, name: str, prefixes: tuple[str, ...], bucket: Bucket, within: str = ""
    ) -> None:
        super().__init__(name="bucket-listing", daemon=True)
        self._client, self._name_of_bucket, self._prefixes, self._bucket = client, name, prefixes, bucket
        self._within = within

    def run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._bucket.update(self.sizes())
            except Exception as error:
                logger.warning(
                    "the bucket %s can't be listed: %s",
                    self._name_of_bucket,
                    error,
                    extra={"action": "listing.failed"},
                )
            time.sleep(max(INTERVAL_SECS, (time.monotonic() - began) / SHARE))

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Objects and bytes by prefix. Raises boto's errors."""
        objects: Tally[str] = Tally(dict.fromkeys(self._prefixes, 0))
        size: Tally[str] = Tally()
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._name_of_bucket, Prefix=self._within
        )
        for entry in (entry for page in pages for entry in page.get("Contents", ())):
            folder = entry["Key"].removeprefix(self._within).partition("/")[0]
            prefix = folder if folder in self._prefixes else OTHER
            objects[prefix] += 1
            size[prefix] += entry["Size"]
        return {prefix: (number, size[prefix]) for prefix, number in objects.items()}
