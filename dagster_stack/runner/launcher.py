"""Until 0.2: where CeleryRunLauncher was. A dagster.yaml of before names it."""

import warnings

from dagster_stack.launch.launcher import CeleryRunLauncher

__all__ = ["CeleryRunLauncher"]

warnings.warn(
    "dagster.yaml names dagster_stack.runner.launcher, which is dagster_stack.launch.launcher now: correct it before 0.2",
    FutureWarning,
    stacklevel=2,
)
