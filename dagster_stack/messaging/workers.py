"""Asks the workers on a broker for their queues, code and tasks; `worker/roll_call` answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging.publishing import confirmed_producer
from dagster_stack.messaging.run_connection import ANSWER_SECS

#: Names the further host that a worker is on; nothing on the first one.
HOST_VARIABLE = "DAGSTER_STACK_HOST"
#: The commands' names on the wire.
ROLL_CALL, REST = "roll_call", "rest"
#: Further seconds for a worker that answered the last time: it may be slow on a busy machine.
SECOND_ANSWER_SECS = 3
#: The values of a worker that does not know the question, such as one of another app.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Activity:
    """A task at work. Run and step are None when its arguments don't tell them."""

    task: str
    run_id: str | None
    step: str | None


@dataclass(frozen=True)
class Worker:
    """One that answered. `busy`: messages that its processes work on; `done`: tasks since its start, `uptime` seconds ago;
    `held`: messages that it has taken and not answered; `rests`: seconds for which it gets no other."""

    name: str
    queues: tuple[str, ...]
    processes: int | None
    uptime: int | None
    doing: tuple[Activity, ...]
    done: int
    code: str = UNKNOWN
    busy: int = 0
    held: int | None = None
    rests: float = 0
    #: Empty on the first host.
    host: str = ""

    @classmethod
    def of(cls, name: str, answer: Mapping[str, Any]) -> "Worker":
        """From its answer: an older worker leaves out some values, one of another app all."""
        return cls(
            name=name,
            queues=tuple(answer.get("queues") or [UNKNOWN]),
            processes=answer.get("processes"),
            uptime=answer.get("uptime"),
            doing=tuple(Activity(**each) for each in answer.get("doing", ())),
            done=answer.get("done", 0),
            code=answer.get("code") or UNKNOWN,
            busy=answer.get("busy", 0),
            held=answer.get("held"),
            rests=answer.get("rests", 0),
            host=answer.get("host", ""),
        )


def ask(
    app: Celery, connection: Any, known: Iterable[str] = (), timeout: float = ANSWER_SECS
) -> list[Worker]:
    """The workers that answer in time; those that are `known` by name get a second chance. Waits for it in full."""
    answers = _asked(app, connection, timeout)
    if missing := set(known) - {name for each in answers for name in each}:
        answers += _asked(
            app, connection, SECOND_ANSWER_SECS, destination=sorted(missing), limit=len(missing)
        )
    return [Worker.of(name, answer) for each in answers for name, answer in each.items()]


def tell_to_rest(app: Celery, connection: Any, names: Mapping[str, float]) -> None:
    """Workers take nothing more, each for so many seconds; with 0 they do again. `rests` of their answers says since when."""
    for name, seconds in names.items():
        app.control.broadcast(REST, arguments={"seconds": seconds}, destination=[name], connection=connection)


def _asked(app: Celery, connection: Any, timeout: float, **options: Any) -> list[Any]:
    return (
        app.control.broadcast(ROLL_CALL, reply=True, timeout=timeout, connection=connection, **options) or []
    )


def workers_of(app: Celery, queue: str, code: str | None = None) -> list[str]:
    """The workers that take from a queue, also those too busy now; with `code`, those that have it.

    Waits for all answers, a second. Raises BrokerUnreachable.
    """
    with confirmed_producer(app) as producer:
        found = ask(app, producer.connection)
    return [each.name for each in found if queue in each.queues and code in (None, each.code)]


def taken(app: Celery, task_ids: Sequence[str]) -> set[str]:
    """Those of the tasks that some worker has taken. Raises BrokerUnreachable."""
    try:
        replies = app.control.inspect(timeout=ANSWER_SECS).query_task(*task_ids) or {}
    except (OperationalError, OSError) as error:
        # This uses a connection of the app's own, which may be dead while others live.
        raise BrokerUnreachable(f"Workers can't be asked: {error}") from error
    return {task_id for tasks in replies.values() for task_id in tasks}
