"""What a step may say and print."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetMaterialization,
    AssetObservation,
    In,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Output,
    TableRecord,
    job,
    op,
)

#: What no encoding takes, what Postgres does not know, and what is in order.
ODD = "file\udcff\0😀"


@op
def talk_oddly(context: OpExecutionContext) -> Iterator[Any]:
    context.log.info(f"said {ODD}")
    context.log.info("m" * 10_000_000)
    context.instance.add_run_tags(context.run_id, {f"tag {ODD}": ODD})
    print(f"printed {ODD}".encode(errors="surrogateescape").decode(errors="replace"))
    os.write(1, b"not UTF-8: \xff\n")
    metadata: dict[str, Any] = {
        ODD: ODD,
        "json": {ODD: [ODD, float("nan")]},
        "long json": {"numbers": list(range(1_000_000))},
        "table": MetadataValue.table([TableRecord({"text": ODD, "number": float("inf")})]),
        "path": MetadataValue.path(ODD),
        "url": MetadataValue.url(ODD),
        "md": MetadataValue.md(ODD),
        "number": float("nan"),
        "large": 10**30,
        "time": MetadataValue.timestamp(float("nan")),
    }
    yield AssetMaterialization(["odd", "materialized"], description=ODD, metadata=metadata)
    yield AssetObservation(["odd", "observed"], description=ODD, metadata=metadata)
    yield Output(None, metadata=metadata)


@op(ins={"start": In(Nothing)})
def fail_oddly() -> None:
    error: Exception = ValueError(ODD)
    for number in range(1000):
        effect = ValueError(f"cause {number} {ODD}")
        effect.__cause__, error = error, effect
    raise ExceptionGroup("several", [OSError(ODD), error]) from error


@job
def talking_oddly() -> None:
    fail_oddly(talk_oddly())


@op
def print_much() -> None:
    os.write(1, bytes(1_300_000_000))
    subprocess.run("yes | head -c 300000000", shell=True, check=True)
    print("it goes on", file=sys.stderr)


@job
def printing_much() -> None:
    print_much()


@op
def write_long_tag(context: OpExecutionContext) -> None:
    """A run's tag that Postgres does not take: longer than an index does, and it can't be compressed."""
    context.instance.add_run_tags(context.run_id, {"long": os.urandom(4000).hex()})


@job
def refused() -> None:
    write_long_tag()


JOBS = [talking_oddly, printing_much, refused]
