"""Parts of Celery, and of billiard and kombu beneath it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from dagster_stack.patches.part import Part

# fmt: off
_celery = partial(Part, read="celery 5.7.0")
_kombu = partial(Part, read="kombu 5.7.0")
_billiard = partial(Part, read="billiard 4.3.2")

SAFE_SAY = _celery("celery.apps.worker:safe_say", "msg, f",
    "a worker that is told to stop says so past the service's log.")
REVOKE = _celery("celery.worker.control:revoke", "state, task_id, terminate, signal, kwargs",
    "it asks the result backend for each task in the event loop, which thousands of steps keep from its heartbeats.",
    upstream="https://github.com/celery/celery/issues/2620")

USED = (
    _celery("celery.worker.request:Request._already_revoked", "False",
        "the death of a process that was ended on purpose is no loss."),
    _celery("celery.worker.request:Request._already_cancelled", "False",
        "the death of a process that was ended on purpose is no loss."),
    _celery("celery.concurrency.asynpool:AsynPool._track_child_process", "self, proc, hub",
        "the pool sees a process end only when all that it has forked are gone, too."),
    _celery("celery.concurrency.asynpool:AsynPool._sentinel_poll", "attribute",
        "the pool takes what is there for the file that tells the end of a process."),
    _celery("celery.concurrency.asynpool:AsynPool._create_worker_process", "self, i",
        "each process of the pool needs the pump of its worker's output."),
    _celery("celery.concurrency.asynpool:AsynPool._waiting_to_start", "attribute",
        "a process that still loads the code is not idle."),
    _celery("celery.concurrency.base:BasePool._pool", "None", "no other way leads to the processes of a pool."),
    _billiard("billiard.pool:Pool._pool", "attribute", "no other way leads to the processes of a pool."),
    _celery("celery.app.base:Celery._after_fork", "self",
        "a forked child must not use its parent's connections to the broker; Celery does it for billiard's alone."),
    _kombu("kombu.messaging:Consumer._active_tags", "attribute",
        "a message says its consumer's tag and not its queue; the routing key need not be the queue's name."),
)
# fmt: on


def processes(pool: Any) -> list[Any]:
    """The processes of a worker's prefork pool."""
    return list(pool._pool._pool)


def starting(pool: Any) -> int:
    """How many of them have not loaded the code yet."""
    return len(pool._pool._waiting_to_start)


def track_by(process: Any, file: int) -> None:
    """Let the pool learn from a file that this process has ended: it becomes readable."""
    process._sentinel_poll = file


def is_tracked(process: Any) -> bool:
    return hasattr(process, "_sentinel_poll")


def leave_connections_to_parent(app: Any) -> None:
    """In a forked child: let an app make connections of its own."""
    app._after_fork()


def queue_of(consumer: Any, message: Any) -> str | None:
    """The queue that a message came from."""
    tag = (message.delivery_info or {}).get("consumer_tag")
    tags: Mapping[str, str] = consumer._active_tags if consumer else {}
    return next((queue for queue, each in tags.items() if each == tag), None)


def forget_tags(consumer: Any) -> list[str]:
    """The tags of a consumer's subscriptions, which are not its own any more."""
    tags = list(consumer._active_tags.values())
    consumer._active_tags.clear()
    return tags
