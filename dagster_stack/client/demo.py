"""The `flights` job, its totals, and where to see its report."""

from collections.abc import Mapping

from dagster_stack.client.dagit import Dagit
from dagster_stack.client.display import View
from dagster_stack.client.watch import Request, Watch
from dagster_stack.errors import ExitCode
from dagster_stack.messaging.management import BrokerApi

JOB = "flights"
#: The step whose output carries the totals and the report's address.
REPORT_STEP = "report"
#: The totals by their metadata label, and how the panel calls them.
TOTALS = {
    "rows": "rows read",
    "used": "used",
    "cancelled": "cancelled",
    "rejected": "rejected",
}


def demo(dagit: Dagit, view: View, broker: BrokerApi | None) -> ExitCode:
    """Run the job; on success print the totals and the addresses."""
    watch = Watch(dagit, view, broker)
    code = watch.run(Request(JOB))
    if code is ExitCode.SUCCESS:
        entries = panel(dagit.output_metadata(watch.run_id, REPORT_STEP), dagit.run_page(watch.run_id))
        view.totals("Flights", entries)
    return code


def panel(metadata: Mapping[str, int | str], run_page: str) -> dict[str, str]:
    """Names and values for the panel: numbers with thousands separators, then the addresses."""
    numbers = {name: metadata[label] for label, name in TOTALS.items() if label in metadata}
    entries = {name: f"{value:,}" for name, value in numbers.items() if isinstance(value, int)}
    if "report" in metadata:
        entries["Report"] = str(metadata["report"])
    entries["Run page"] = run_page
    return entries
