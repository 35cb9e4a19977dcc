"""What `make autoscale` learns and says inside the stack: each line of standard input is a question, answered by a line.

It runs beside the workers since the broker has no port on the host; and whoever may start containers stays on the host.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import requests
import sqlalchemy
from sqlalchemy.engine import Engine

from dagster_stack.errors import BrokerUnreachable, ExitCode, UsageError
from dagster_stack.messaging.connection import connected
from dagster_stack.messaging.management import BrokerApi
from dagster_stack.messaging.workers import ask, tell_to_rest
from dagster_stack.settings import broker_address
from dagster_stack.store.connections import url_from_environment
from dagster_stack.store.facts import NOTE

#: Seconds for the answers of workers.
ANSWER_SECS = 1.0
#: Seconds for Postgres: a note that comes late is of no use.
NOTE_SECS = 5
#: Under which the newest note stands, for the figures (monitoring/gauges.toml).
FACT = "autoscale"


def serve(
    questions: TextIO,
    answers: TextIO,
    environment: Mapping[str, str] = os.environ,
    memory: Path = Path("/proc/meminfo"),
) -> ExitCode:
    """Answer until the questions end. Raises UsageError or BrokerUnreachable.

    A question may have `rest`, the seconds that workers are to take nothing more by their names; `workers`, for what they say;
    `note`, what is to be kept.
    """
    broker = BrokerApi.from_environment(environment)
    if broker is None:
        raise UsageError("The environment names no management API of RabbitMQ: this is no `cli` container.")
    with connected(broker_address(environment)) as (app, connection), notes(environment) as note:
        for line in questions:
            question = json.loads(line)
            tell_to_rest(app, connection, question.get("rest", {}))
            answer: dict[str, Any] = {
                "queues": depths(broker),
                "memory": available(memory),
                "processors": os.cpu_count() or 1,
            }
            if question.get("workers"):
                answer["workers"] = [
                    {
                        "name": each.name,
                        "host": each.host,
                        "queues": each.queues,
                        "held": each.held,
                        "rests": each.rests,
                    }
                    for each in ask(app, connection, timeout=ANSWER_SECS)
                ]
            if "note" in question:
                note(question["note"])
            print(json.dumps(answer), file=answers, flush=True)
    return ExitCode.SUCCESS


def depths(broker: BrokerApi) -> dict[str, dict[str, int]]:
    """Messages that wait in each queue, and those that workers hold. Raises BrokerUnreachable."""
    try:
        return {each.name: {"ready": each.ready, "in_work": each.unacked} for each in broker.read_all()}
    except (requests.RequestException, ValueError) as error:
        raise BrokerUnreachable(f"RabbitMQ's management does not answer: {error}") from error


def available(file: Path) -> int:
    """Bytes of this machine that are free for new processes, as the kernel estimates it."""
    lines = file.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@contextmanager
def notes(environment: Mapping[str, str]) -> Iterator[Any]:
    """A function that keeps a value where figures find it, if Postgres answers."""
    engine: Engine = sqlalchemy.create_engine(
        url_from_environment(environment),
        isolation_level="AUTOCOMMIT",
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={
            "application_name": "dagster-stack autoscale",
            "connect_timeout": NOTE_SECS,
            "options": f"-c statement_timeout={NOTE_SECS}s",
        },
    )

    def note(value: Any) -> None:
        try:
            with engine.connect() as connection:
                connection.execute(NOTE, {"name": FACT, "value": json.dumps(value)})
        except sqlalchemy.exc.SQLAlchemyError as error:
            print(f"Postgres does not take the note: {error}", file=sys.stderr)

    yield note
    engine.dispose()
