"""200 MB from one step to the next, by IO managers and by plain boto3: time, and memory beside the object."""

import gc
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
from dagster import build_input_context, build_output_context

from bench.forked import forked
from bench.goals import AWS_IO_MANAGER, IO_MANAGER, PLAIN
from bench.jobs import resources
from bench.leftovers import remove_objects
from bench.progress import say
from dagster_stack.settings import S3Settings, Settings

#: Bytes that are handed over, such as nothing makes smaller.
SIZE = 200_000_000
#: Writes an object for a run, or reads it.
Put = Callable[[str, bytes], None]
Get = Callable[[str], bytes]


@dataclass(frozen=True)
class Transfer:
    """Seconds of each half; bytes of memory that each had at most above what it began with."""

    way: str
    put: float
    get: float
    put_memory: int
    get_memory: int


def measure(rounds: int) -> list[dict[str, Any]]:
    """Each way in turn, as often as there are rounds; the objects are removed."""
    settings = Settings.from_environment()
    assert settings.s3
    data = os.urandom(SIZE)
    found = []
    for number in range(1, rounds + 1):
        for way in WAYS:
            run_id = f"bench-{uuid4()}"
            try:
                transfer = forked(put_and_get, way, run_id, data)
            finally:
                remove_objects(settings.s3, f"{settings.data_prefix}/storage/{run_id}")
            say(
                f"200 MB through S3 · {way} · {number} of {rounds}:"
                f" put {transfer.put:.2f} s, get {transfer.get:.2f} s"
            )
            found.append(asdict(transfer))
    return found


def put_and_get(way: str, run_id: str, data: bytes) -> Transfer:
    """One of each, in a process whose memory nothing else has touched."""
    put, get = WAYS[way]()
    # Connections and code are there: what counts is the object.
    put(f"{run_id}-small", b"")
    get(f"{run_id}-small")
    put_time, put_memory, _ = measured(lambda: put(run_id, data))
    get_time, get_memory, found = measured(lambda: get(run_id))
    assert found == data
    return Transfer(way, put_time, get_time, put_memory, get_memory)


def measured(act: Callable[[], Any]) -> tuple[float, int, Any]:
    """Seconds, bytes at most above those at the begin, and what `act` returned."""
    gc.collect()
    # Makes the kernel count the peak from here on: man 5 proc, clear_refs.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    started = time.monotonic()
    result = act()
    seconds = time.monotonic() - started
    return seconds, max(0, memory("VmHWM") - before), result


def memory(kind: str) -> int:
    """A line of this process's status, in bytes."""
    found = re.search(rf"^{kind}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def plain() -> tuple[Put, Get]:
    """boto3 as its documentation shows it."""
    settings = Settings.from_environment()
    place: S3Settings | None = settings.s3
    assert place
    client = boto3.client("s3", endpoint_url=place.endpoint_url)
    bucket = place.bucket

    def key(run_id: str) -> str:
        return f"{settings.data_prefix}/storage/{run_id}/made/result"

    def put(run_id: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=key(run_id), Body=data)

    def get(run_id: str) -> bytes:
        data: bytes = client.get_object(Bucket=bucket, Key=key(run_id))["Body"].read()
        return data

    return put, get


def through_io_manager(on_own_storage: bool) -> tuple[Put, Get]:
    manager = resources(on_own_storage)["io_manager"]

    def put(run_id: str, data: bytes) -> None:
        manager.handle_output(build_output_context("made", "result", run_id=run_id), data)

    def get(run_id: str) -> bytes:
        upstream = build_output_context("made", "result", run_id=run_id)
        data: bytes = manager.load_input(build_input_context("data", upstream_output=upstream))
        return data

    return put, get


WAYS: dict[str, Callable[[], tuple[Put, Get]]] = {
    PLAIN: plain,
    IO_MANAGER: lambda: through_io_manager(False),
    AWS_IO_MANAGER: lambda: through_io_manager(True),
}
