"""The run queue: Dagster's own, which dequeues as many runs as there are places with runners."""

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from dagster import Field, IntSource, QueuedRunCoordinator
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from dagster._serdes import ConfigurableClassData

from dagster_stack.errors import SettingsError

#: Seconds between two looks at the queue; Dagster's loop waits in steps of this length.
LOOK_SECS = 0.5
#: Seconds for which it starts no run when it is told to rest. Whoever needs that for longer says so again.
REST_SECS = 60

logger = logging.getLogger(__name__)


class _Rest:
    """The rest of this process's queue, by the monotonic clock."""

    until = 0.0


def rest() -> None:
    """Let the run queue of this process start no run for a while: `make deploy` waits for those under way."""
    if time.monotonic() >= _Rest.until:
        logger.info("the run queue rests, as `make deploy` wants it", extra={"action": "queue.rests"})
    _Rest.until = time.monotonic() + REST_SECS


def go_on() -> None:
    """End the rest."""
    _Rest.until = 0.0


class RunQueue(QueuedRunCoordinator):
    """`max_concurrent_runs` is `runners` x `runner_concurrency`; one that is set may be lower, 0 counts as not set."""

    _interval = LOOK_SECS

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        own = {
            "runners": Field(IntSource),
            "runner_concurrency": Field(IntSource),
            # Dagster takes whole seconds only.
            "dequeue_interval_seconds": Field(float, default_value=LOOK_SECS),
        }
        return {**cast(Mapping[str, Any], super().config_type()), **own}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "RunQueue":
        values = dict(config_value)
        interval = values.pop("dequeue_interval_seconds")
        runners, concurrency = values.pop("runners"), values.pop("runner_concurrency")
        places, wanted = runners * concurrency, values.get("max_concurrent_runs") or 0
        if not 0 <= wanted <= places:
            raise SettingsError(
                f"MAX_CONCURRENT_RUNS={wanted}, but {runners} runners with {concurrency} runs each (RUNNERS and"
                f" RUNNER_CONCURRENCY in .env) drive {places} at once: raise those, or leave MAX_CONCURRENT_RUNS empty."
            )
        queue = cls(inst_data=inst_data, **{**values, "max_concurrent_runs": wanted or places})
        # Without any pause it would look all the time.
        queue._interval = max(interval, LOOK_SECS)
        return queue

    def get_run_queue_config(self) -> RunQueueConfig:
        config = super().get_run_queue_config()
        # Dagster's daemon asks at each look.
        return config if time.monotonic() >= _Rest.until else config._replace(max_concurrent_runs=0)

    @property
    def dequeue_interval_seconds(self) -> float:  # type: ignore[override]
        return self._interval
