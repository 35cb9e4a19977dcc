"""The workers that are alive, their queues and their tasks: as a table or JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagster_stack.client.display import printable
from dagster_stack.errors import ExitCode
from dagster_stack.messaging.connection import connected
from dagster_stack.messaging.workers import Activity, Worker, ask
from dagster_stack.monitoring.formatting import seconds
from dagster_stack.settings import broker_address

#: Seconds for the answers. Their number is not known, so it waits in full. A busy worker's takes some 50 ms.
ANSWER_TIMEOUT_SECS = 1.5
#: How the host with the stores is named among several.
FIRST_HOST = "first"
#: Characters of a run's id: as Dagit shows it.
SHORT_RUN_ID = 8
#: Columns of a table that goes into a file or pipe: wide enough that no cell is cut.
PLAIN_WIDTH = 200


def show_workers(out: TextIO, as_json: bool, environment: Mapping[str, str] = os.environ) -> ExitCode:
    """Print all workers; FAILED when none is alive. Raises UsageError or BrokerUnreachable."""
    workers = ask_workers(broker_address(environment))
    if as_json:
        print(json.dumps([asdict(worker) for worker in workers], indent=2), file=out)
    elif workers:
        console = Console(file=out, highlight=False, width=None if out.isatty() else PLAIN_WIDTH)
        console.print(table(workers))
    else:
        print(
            f"No worker answered within {ANSWER_TIMEOUT_SECS:g} s. `docker compose ps` shows the workers'"
            " state, `docker compose up -d` starts them, `docker compose logs worker` says why one is gone.",
            file=out,
        )
    return ExitCode.SUCCESS if workers else ExitCode.FAILED


def ask_workers(broker: str | None) -> list[Worker]:
    """All workers that answer on this broker, by name. Raises UsageError or BrokerUnreachable."""
    with connected(broker) as (app, connection):
        return sorted(ask(app, connection, timeout=ANSWER_TIMEOUT_SECS), key=lambda each: each.name)


def described(activity: Activity) -> str:
    """Run and step, as Dagit shows them; the task when these are not known."""
    parts = ((activity.run_id or "")[:SHORT_RUN_ID], activity.step)
    return " ".join(part for part in parts if part) or activity.task


def table(workers: Sequence[Worker]) -> Table:
    """The workers for people."""
    content = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    several_hosts = any(worker.host for worker in workers)
    for title in ("WORKER", *(["HOST"] if several_hosts else []), "QUEUES"):
        content.add_column(title, overflow="fold")
    for title in ("PROCESSES", "UPTIME", "DONE"):
        content.add_column(title, justify="right", no_wrap=True)
    content.add_column("DOING", overflow="fold")
    for worker in workers:
        content.add_row(
            Text(printable(worker.name)),
            *([Text(printable(worker.host or FIRST_HOST))] if several_hosts else []),
            Text(", ".join(worker.queues) or "?"),
            Text("?" if worker.processes is None else str(worker.processes)),
            Text(seconds(worker.uptime)),
            Text(str(worker.done)),
            Text(
                printable("\n".join(map(described, worker.doing))) or ("at rest" if worker.rests else "idle")
            ),
        )
    return content
