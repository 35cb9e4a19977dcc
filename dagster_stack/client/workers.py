"""Who is alive, on which queue, doing what: Celery's remote control, as a table or JSON."""

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagster_stack.broker.connection import connected
from dagster_stack.client.display import printable
from dagster_stack.client.progress import clock
from dagster_stack.errors import ExitCode
from dagster_stack.settings import BROKER_VARIABLE

#: Seconds for the first question, which waits in full as nobody knows how many will answer.
#: The next ones end with the last worker's answer. A worker with busy processes answers in some 50 ms.
ANSWER_TIMEOUT_SECS = 1.5
#: Characters of a run's id: as Dagit shows it.
SHORT_RUN_ID = 8
#: Columns of a table that goes into a file or pipe: wide enough that no cell is cut.
PLAIN_WIDTH = 200


@dataclass(frozen=True)
class Activity:
    """A task at work. Run and step are None when its arguments don't tell them."""

    task: str
    run_id: str | None
    step: str | None

    def __str__(self) -> str:
        if self.run_id is None and self.step is None:
            return self.task
        return " ".join(part for part in ((self.run_id or "")[:SHORT_RUN_ID], self.step) if part)


@dataclass(frozen=True)
class Worker:
    """One Celery worker. `done` counts tasks since its start, `uptime` is in seconds."""

    name: str
    queues: tuple[str, ...]
    processes: int | None
    uptime: int | None
    doing: tuple[Activity, ...]
    done: int


def show_workers(out: TextIO, as_json: bool, environment: Mapping[str, str] = os.environ) -> ExitCode:
    """Print all workers; FAILED when none is alive. Raises UsageError or BrokerUnreachable."""
    workers = ask_workers(environment.get(BROKER_VARIABLE))
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
    """Everybody who answers on this broker, by name."""
    with connected(broker) as (app, connection):
        inspect = app.control.inspect(timeout=ANSWER_TIMEOUT_SECS, connection=connection)
        names = sorted(inspect.ping() or {})
        if not names:
            return []
        inspect = app.control.inspect(
            names, timeout=ANSWER_TIMEOUT_SECS, connection=connection, limit=len(names)
        )
        queues, active, stats = inspect.active_queues(), inspect.active(), inspect.stats()
    return [
        read_worker(name, (queues or {}).get(name), (active or {}).get(name), (stats or {}).get(name))
        for name in names
    ]


def read_worker(
    name: str,
    queues: Sequence[Mapping[str, Any]] | None,
    active: Sequence[Mapping[str, Any]] | None,
    stats: Mapping[str, Any] | None,
) -> Worker:
    """One worker from its four answers, of which all but the first may have been too late."""
    stats = stats or {}
    return Worker(
        name=name,
        queues=tuple(queue["name"] for queue in queues or ()),
        processes=(stats.get("pool") or {}).get("max-concurrency"),
        uptime=stats.get("uptime"),
        doing=tuple(read_activity(task) for task in active or ()),
        # Celery counts a task when it begins.
        done=max(0, sum((stats.get("total") or {}).values()) - len(active or ())),
    )


def read_activity(task: Mapping[str, Any]) -> Activity:
    """Run and step out of a task's arguments: a dict, its printed form, or a truncated piece of that."""
    arguments = task.get("kwargs")
    if isinstance(arguments, str):
        try:
            arguments = ast.literal_eval(arguments)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return Activity(task.get("name") or "?", *search_arguments(str(arguments)))
    message = arguments.get("message") if isinstance(arguments, Mapping) else None
    if isinstance(message, Mapping):
        return Activity(task.get("name") or "?", message.get("run_id"), message.get("step_key"))
    packed = arguments.get("execute_step_args_packed") if isinstance(arguments, Mapping) else None
    if not isinstance(packed, Mapping):
        return Activity(task.get("name") or "?", *search_arguments(repr(task.get("args") or "")))
    # Dagster's serializer still writes the field's name of old.
    run_id = packed.get("run_id") or packed.get("pipeline_run_id")
    steps = packed.get("step_keys_to_execute") or []
    if isinstance(steps, Mapping):  # A sequence that Dagster's serializer wrapped.
        steps = steps.get("__seq__") or steps.get("__set__") or []
    return Activity(task.get("name") or "?", run_id, ", ".join(str(step) for step in steps) or None)


def search_arguments(text: str) -> tuple[str | None, str | None]:
    """Run and step as far as a truncated text still holds them."""
    run = re.search(r"""['"](?:pipeline_)?run_id['"]: ['"]([0-9a-f-]{8,36})""", text)
    step = re.search(r"""['"]step_key(?:s_to_execute)?['"]: \[?['"]([^'"]+)['"]""", text)
    return (run[1] if run else None, step[1] if step else None)


def table(workers: Sequence[Worker]) -> Table:
    """The workers for people."""
    content = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("WORKER", "QUEUES"):
        content.add_column(title, overflow="fold")
    for title in ("PROCESSES", "UPTIME", "DONE"):
        content.add_column(title, justify="right", no_wrap=True)
    content.add_column("DOING", overflow="fold")
    for worker in workers:
        content.add_row(
            Text(printable(worker.name)),
            Text(", ".join(worker.queues) or "?"),
            Text("?" if worker.processes is None else str(worker.processes)),
            Text("?" if worker.uptime is None else clock(worker.uptime)),
            Text(str(worker.done)),
            Text(printable("\n".join(str(activity) for activity in worker.doing)) or "idle"),
        )
    return content
