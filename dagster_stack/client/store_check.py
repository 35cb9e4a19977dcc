"""Whether an S3 store does all that the stack needs, as a table."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagster_stack.client.display import printable
from dagster_stack.errors import ExitCode, UsageError
from dagster_stack.objects.contract import Finding, Trial, tried
from dagster_stack.settings import BUCKET_VARIABLE, Settings

#: Columns of a table that goes into a file or pipe: wide enough that no cell is cut.
PLAIN_WIDTH = 200


def check_store(out: TextIO, environment: Mapping[str, str] = os.environ) -> ExitCode:
    """Print what was found; FAILED when the store lacks what the stack needs. Raises UsageError and SettingsError."""
    settings = Settings.from_environment(environment)
    if settings.s3 is None:
        raise UsageError(f"There is no store to check: {BUCKET_VARIABLE} is not set.")
    # Its objects go, also when it is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = settings.s3
    where = f"s3://{place.bucket}/{place.key_prefix} at {place.endpoint_url or 'Amazon'}"
    print(f"Checking {where}", file=out, flush=True)
    trial = Trial(place.endpoint_url, place.bucket, settings.data_prefix)
    findings = list(tried(trial))
    console = Console(file=out, highlight=False, width=None if out.isatty() else PLAIN_WIDTH)
    console.print(table(findings))
    lacking = [finding for finding in findings if finding.check.required and not finding.is_kept]
    print(conclusion(lacking, findings), file=out)
    if trial.is_left and findings[0].is_kept:
        print(f"What was tried is still there: delete all below {trial.folder} yourself.", file=out)
    return ExitCode.FAILED if lacking else ExitCode.SUCCESS


def table(findings: Sequence[Finding]) -> Table:
    content = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "CHECK", "FOUND", "WITHOUT IT"):
        content.add_column(title, overflow="fold")
    for finding in findings:
        mark = "✓" if finding.is_kept else "✗" if finding.check.required else "!"
        cells = (mark, finding.check.title, finding.found, "" if finding.is_kept else finding.check.without)
        content.add_row(*(Text(printable(cell)) for cell in cells))
    return content


def conclusion(lacking: Sequence[Finding], findings: Sequence[Finding]) -> str:
    if lacking:
        return f"\nThe stack can't use it: {', '.join(finding.check.title for finding in lacking)}."
    if all(finding.is_kept for finding in findings):
        return "\nIt does all that the stack uses."
    return "\nIt does all that the stack needs; lines with ! say what is lost."
