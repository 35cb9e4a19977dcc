"""Messages that no worker could use, as a table or JSON; reading them leaves them where they are."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagster_stack.client.display import printable
from dagster_stack.client.workers import PLAIN_WIDTH
from dagster_stack.errors import ExitCode
from dagster_stack.messaging.connection import connected
from dagster_stack.messaging.dead_letters import QUEUE, DeadLetter, letters
from dagster_stack.settings import broker_address

#: Characters of a message's body, and of the names of its run and step, in the table.
SHOWN_BODY, SHOWN_NAME = 80, 200
ADVICE = f"""
Nothing waits for these messages. They come from other programs on this broker, from another version of this stack,
or from runs that are not in its database. Is one of them a step of yours? Its run, in Dagit, says how it went on.
`docker compose run --rm --no-deps cli python -m dagster_stack dead-letters --json` prints them whole.
To remove them, purge the queue {QUEUE.name} in RabbitMQ's management."""


def show_dead_letters(out: TextIO, as_json: bool, environment: Mapping[str, str] = os.environ) -> ExitCode:
    """Print what was put aside, the oldest first. Raises UsageError or BrokerUnreachable."""
    with connected(broker_address(environment)) as (_, connection):
        found = list(letters(connection))
    if as_json:
        print(json.dumps([asdict(letter) for letter in found], indent=2), file=out)
    elif found:
        console = Console(file=out, highlight=False, width=None if out.isatty() else PLAIN_WIDTH)
        console.print(table(found))
        print(ADVICE, file=out)
    else:
        print("There are no dead letters: workers could use every message.", file=out)
    return ExitCode.SUCCESS


def table(found: Sequence[DeadLetter]) -> Table:
    """The letters for people; times are UTC."""
    content = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    content.add_column("WHEN (UTC)", no_wrap=True)
    for title in ("QUEUE", "WORKER", "WHAT", "REASON"):
        content.add_column(title, overflow="fold")
    for letter in found:
        content.add_row(
            f"{datetime.fromtimestamp(letter.at, UTC):%Y-%m-%d %H:%M:%S}",
            *(
                Text(writable(printable(text)) or "?")
                for text in (letter.queue, letter.worker, what(letter), letter.reason)
            ),
        )
    return content


def what(letter: DeadLetter) -> str:
    """The run and step of one of this stack's messages; of any other one, how it begins."""
    try:
        message = _message(json.loads(letter.body))
    except (ValueError, RecursionError):
        message = {}
    if isinstance(message.get("run_id"), str):
        run, step = (str(message.get(name) or "")[:SHOWN_NAME] for name in ("run_id", "step_key"))
        return f"step {step} of run {run}" if step else f"run {run}"
    return " ".join(part for part in (letter.task, letter.body[:SHOWN_BODY]) if part) or letter.content_type


def writable(text: str) -> str:
    """A text that JSON may have said and no terminal takes: half a character."""
    return text.encode(errors="backslashreplace").decode()


def _message(body: Any) -> Mapping[str, Any]:
    """This stack's part of a task's body, which is the message itself or Celery's three kinds of arguments."""
    match body:
        case [[*_], {"message": {} as message}, _] | ({} as message):
            return dict(message)
    return {}
