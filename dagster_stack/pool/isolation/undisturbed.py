"""Undoes what user code does to its process, or has that process replaced."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dagster import DagsterInstance, DagsterRun

from dagster_stack.errors import NotRestored
from dagster_stack.pool.isolation.registry import KEPT, Kept
from dagster_stack.pool.isolation.threads import Threads
from dagster_stack.pool.replacement import replace_process

logger = logging.getLogger(__name__)


@contextmanager
def undisturbed(tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Put back what is in KEPT at the end. `tell` gets each reason why the process is replaced after this task.

    Outside of a main thread signals stay as they are: only that one may set them.
    """
    threads = Threads()
    saved = [(kept, kept.save()) for kept in KEPT]
    try:
        yield
    finally:
        try:
            changed = _put_back(saved)
        # A signal of the step's own that came between two of them.
        except Exception:
            changed = _put_back(saved)
        if changed:
            tell(f"changed what can't be put back ({', '.join(changed)})")
        if left := threads.left():
            tell(f"left threads that still run ({', '.join(left)})")
        if changed or left:
            replace_process()


def tell_left(
    instance: DagsterInstance, run: DagsterRun, who: str, left: Sequence[str], step_key: str | None = None
) -> None:
    """Write into the run's log why this process is replaced; into the service's log if the run's can't be written."""
    reason = f"{who} {'; it '.join(left)}. Its process is replaced."
    logger.warning("%s", reason, extra={"action": "process.replaced"})
    try:
        instance.report_engine_event(reason, run, step_key=step_key)
    except Exception as error:
        logger.warning("the run could not be told: %s", error, extra={"action": "process.not_told"})


def _put_back(saved: Sequence[tuple[Kept, Any]]) -> list[str]:
    """What can't be put back."""
    return [name for kept, state in saved if (name := _not_restored(kept, state))]


def _not_restored(kept: Kept, state: Any) -> str | None:
    # A signal of the step's own may come in between, until timers and handlers are those of the process.
    for is_last in (False, True):
        try:
            kept.restore(state)
        except NotRestored as error:
            return str(error)
        except Exception as error:
            if is_last:
                return f"{kept.name}: {error!r}"
        else:
            return None
    return None
