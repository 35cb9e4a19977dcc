"""One delivery of a message, of a run as of a step: parse it, admit its work, execute that, settle the message."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from celery import Celery, Task
from celery.exceptions import Reject

from dagster_stack.code_version import code_version
from dagster_stack.errors import (
    AlreadyDone,
    AlreadyHeld,
    BrokerUnreachable,
    Fenced,
    ForeignCode,
    GivenUp,
    HandedOver,
    NoRoom,
    NoSuchJob,
    NoSuchRun,
    OldDefinitions,
)
from dagster_stack.logs.context import bound
from dagster_stack.messaging.dead_letters import dead_letter_task
from dagster_stack.messaging.delayed import delay, refused_for
from dagster_stack.messaging.messages import RunMessage, StepMessage
from dagster_stack.messaging.publishing import source_queue
from dagster_stack.messaging.workers import workers_of
from dagster_stack.pool.replacement import replace_process
from dagster_stack.pool.warm import warm_instance
from dagster_stack.store.leases import Lease
from dagster_stack.store.ledger import ledger_of
from dagster_stack.store.sqlstate import is_away
from dagster_stack.timing import FOREIGN_CODE_SECS

logger = logging.getLogger(__name__)

#: Seconds for which an answer of the workers counts: messages that wait for one of them come again every 2 s.
ANSWER_COUNTS_SECS = 15
#: Seconds between two tries to hand work over, or to put its message elsewhere, while a service is away.
AWAY_PAUSE_SECS = 5


class Execution(Protocol):
    """The work of one message, on its way through this process."""

    def run(self) -> None:
        """Execute it if it is to be executed here and now, and store its end. Raises errors that `settled` handles."""

    def hand_over(self, reason: str) -> None:
        """Let whoever gets the message next begin at once."""

    def skip(self) -> None:
        """Finish work that is done already."""


Message = TypeVar("Message", RunMessage, StepMessage)


def deliver(
    task: Task, content: Any, kind: type[Message], execution_of: Callable[[Message], Execution]
) -> None:
    """One delivery of what a Celery task got. Returns once the work's end is stored, raises Reject else."""
    try:
        message = kind.from_json(content)
    except ValueError as error:
        put_aside(task, content, str(error))
        return
    execution = execution_of(message)
    work = message.work
    with (
        bound(run=work.run_id, step=work.step_key, task=message.task_id),
        settled(task, message, execution),
    ):
        execution.run()


@contextmanager
def settled(task: Task, message: StepMessage | RunMessage, execution: Execution) -> Iterator[None]:
    """Do with a task's message what the error of its work asks for; raises Reject when it is to come again."""
    hand_over = execution.hand_over
    try:
        yield
    except AlreadyDone as done:
        logger.warning("%s is skipped: %s", message.work, done, extra={"action": "message.skipped"})
        execution.skip()
    except HandedOver as error:
        raise Reject(str(error), requeue=True) from error
    except (ForeignCode, AlreadyHeld, NoRoom) as error:
        logger.info("%s comes again: %s", message.work, error, extra={"action": "message.delayed"})
        hand_over(str(error))
        with back_to_queue_on_error():
            delay(task, message, refused=isinstance(error, ForeignCode))
    except OldDefinitions as error:
        logger.info(
            "%s goes back to its queue: %s", message.work, error, extra={"action": "message.returned"}
        )
        hand_over(str(error))
        replace_process()
        raise Reject(str(error), requeue=True) from error
    except (NoSuchRun, NoSuchJob) as error:
        put_aside(task, message.to_json(), str(error))
    except GivenUp as error:
        raise _returned(message, error, hand_over) from error
    except Fenced as error:
        # Whoever took it over has the message too.
        logger.warning("%s", error, extra={"action": "lease.lost"})
    except Exception as error:
        if is_away(error):
            raise _returned(message, error, hand_over) from error
        # Celery would acknowledge it without a trace. Work that has begun writes its errors into the run's log.
        logger.exception("%s can't be done", message.work, extra={"action": "message.failed"})
        hand_over(repr(error))
        put_aside(task, message.to_json(), f"it could not be worked on: {error!r}")


def _returned(
    message: StepMessage | RunMessage, error: Exception, hand_over: Callable[[str], None]
) -> Reject:
    """Without the database nothing can be reported: give the work to a process that reaches it."""
    logger.error("%s goes back to its queue: %s", message.work, error, extra={"action": "message.returned"})
    hand_over(str(error))
    return Reject(str(error), requeue=True)


def put_aside(task: Task, content: Any, reason: str) -> None:
    """Put a task's message among the dead letters; when that fails it is not lost: raises Reject after a pause."""
    with back_to_queue_on_error():
        dead_letter_task(task, content, reason)


def foreign_code(
    message: StepMessage | RunMessage, theirs: str, has_worker_of: Callable[[str], bool]
) -> ForeignCode | None:
    """None: this process has the code of a message's work. Raises it while a worker that has it may come to the message."""
    ours = code_version()
    if not (theirs and ours and theirs != ours):
        return None
    found = ForeignCode(theirs, ours)
    if refused_for(message) < FOREIGN_CODE_SECS or has_worker_of(theirs):
        raise found
    return found


def has_worker_of(task: Task, code: str) -> bool:
    """Whether a worker with some code takes from the queue of a task's message: it may only be busy.

    True as well when they can't be asked: unknown is not gone.
    """
    return _has_worker_of(task.app, source_queue(task), code, int(time.monotonic() / ANSWER_COUNTS_SECS))


@lru_cache(maxsize=64)
def _has_worker_of(app: Celery, queue: str, code: str, _: int) -> bool:
    """The answer of one moment; the last argument tells moments apart."""
    try:
        return bool(workers_of(app, queue, code))
    except BrokerUnreachable:
        return True


@contextmanager
def back_to_queue_on_error() -> Iterator[None]:
    """Whatever goes wrong in here, the message is not lost: it goes back to its queue, after a pause."""
    try:
        yield
    except Exception as error:
        logger.exception("the message goes back to its queue", extra={"action": "message.returned"})
        time.sleep(AWAY_PAUSE_SECS)
        raise Reject(str(error), requeue=True) from error


def release(lease: Lease | None, reason: str) -> None:
    """Release the lease, so the next process begins at once; waits while the database is away."""
    while lease:
        try:
            return ledger_of(warm_instance()).release(lease, reason)
        except Exception as error:
            if not is_away(error):
                raise
            logger.warning("the database is still away: %s", error, extra={"action": "database.away"})
            time.sleep(AWAY_PAUSE_SECS)
