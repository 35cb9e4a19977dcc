"""Whether a store has all objects of the one that the stack comes from, and no others."""

from typing import TextIO

from botocore.exceptions import BotoCoreError, ClientError

from dagster_stack.client.display import printable
from dagster_stack.errors import ExitCode
from dagster_stack.objects.comparison import Comparison, Place, compared
from dagster_stack.retention.freed import in_mb

#: Objects that are named.
SHOWN = 10


def compare_stores(out: TextIO) -> ExitCode:
    """Print what both have; FAILED, with some that differ, unless all are the same."""
    try:
        found = compared(Place.source(), Place.target())
    except (ClientError, BotoCoreError, OSError) as error:
        print(f"The stores can't be compared: {error}", file=out)
        return ExitCode.UNREACHABLE
    for line in told(found):
        print(printable(line), file=out)
    return ExitCode.FAILED if found.differing else ExitCode.SUCCESS


def told(found: Comparison) -> list[str]:
    by_size = found.objects - found.by_hash
    lines = [
        f"{found.objects:,} objects, {in_mb(found.size)}, are the same: {found.by_hash:,} by hash, {by_size:,} by size"
    ]
    if found.marks:
        lines.append(f"{found.marks:,} folder marks (empty objects whose name ends in /) were left behind")
    if found.differing:
        lines.append(f"{len(found.differing):,} objects differ:")
        lines += [f"  {line}" for line in found.differing[:SHOWN]]
    return lines
