"""The pool of a worker: Celery's, which sees each of its processes end at once, and leaves nothing of it running."""

import logging
import os
from typing import Any

from celery.concurrency.asynpool import AsynPool

from dagster_stack.patches import celery as parts
from dagster_stack.step import shared_memory
from dagster_stack.step.descendants import adopt_orphans, end_orphans

logger = logging.getLogger(__name__)


class TidyPool(AsynPool):
    """Celery's pool, in a worker's main process."""

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        if not parts.is_tracked(proc):
            # billiard's own, a pipe, says so only when all that the process has forked are gone too.
            try:
                parts.track_by(proc, os.pidfd_open(proc.pid))
            except OSError:
                logger.debug("no pidfd", exc_info=True, extra={"action": "process.no_pidfd"})
        super()._track_child_process(proc, hub)

    def _create_worker_process(self, i: int) -> Any:
        from dagster_stack.objects.capture import PUMP

        # Reap a killed one: else it stays a zombie, and each process starts its own.
        PUMP.start()
        return super()._create_worker_process(i)

    def process_flush_queues(self, proc: Any) -> None:
        """Called before the process's message counts as lost or goes back to its queue, and before a new process starts."""
        super().process_flush_queues(proc)
        if proc.exitcode is None:
            # The connection was lost, the process lives.
            return
        ended = end_orphans([each.pid for each in self._pool if each.exitcode is None])
        if ended:
            logger.warning(
                "process %d has left others, which are killed: %s",
                proc.pid,
                ", ".join(ended),
                extra={"action": "process.orphans_killed"},
            )
        shared_memory.clear_worker()


def prepare(concurrency: int) -> None:
    """In a worker's main process, before its pool starts."""
    adopt_orphans()
    shared_memory.remember_worker(concurrency)
