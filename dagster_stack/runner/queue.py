"""Until 0.2: where RunQueue was. A dagster.yaml of before names it."""

import warnings

from dagster_stack.launch.run_queue import RunQueue

__all__ = ["RunQueue"]

warnings.warn(
    "dagster.yaml names dagster_stack.runner.queue, which is dagster_stack.launch.run_queue now: correct it before 0.2",
    FutureWarning,
    stacklevel=2,
)
