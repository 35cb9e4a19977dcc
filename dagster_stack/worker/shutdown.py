"""How a worker stops: it takes nothing new, running steps get a while to end, the rest goes back to its queue.

Order on SIGTERM: Celery cancels its consumer and waits for running steps (its warm shutdown). When they
end in time it acknowledges them and closes the connection. When they do not, the process ends: the broker
sees the connection close and gives each unacknowledged step to another worker.
"""

import logging
import mmap
import os
import threading
from typing import Any

from celery import signals

from dagster_stack.timing import DRAIN_SECS

logger = logging.getLogger(__name__)


#: One byte that the processes of a pool share with their worker.
_leaving = mmap.mmap(-1, 1)


def is_leaving() -> bool:
    """Whether this process's worker was told to stop: its remaining work may go to another one."""
    return _leaving[0] != 0


def start_drain(**_: Any) -> None:
    """Bound Celery's warm shutdown, which by itself waits for ever."""
    _leaving[0] = 1
    timer = threading.Timer(DRAIN_SECS, hand_back)
    timer.daemon = True
    timer.start()


def hand_back() -> None:
    """End the process at once; what it has not acknowledged is delivered again."""
    logger.warning(
        "steps still running after %s s go back to their queue",
        DRAIN_SECS,
        extra={"action": "step.handed_back"},
    )
    logging.shutdown()
    os._exit(0)


def install() -> None:
    """Bound the shutdown of this process's worker."""
    # A weak reference would be gone with the caller's frame.
    signals.worker_shutting_down.connect(start_drain, weak=False)
