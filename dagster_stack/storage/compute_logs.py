"""Until 0.2: where S3ComputeLogs was. A dagster.yaml of before names it."""

import warnings

from dagster_stack.objects.compute_logs import S3ComputeLogs

__all__ = ["S3ComputeLogs"]

warnings.warn(
    "dagster.yaml names dagster_stack.storage.compute_logs, which is dagster_stack.objects.compute_logs now: correct it before 0.2",
    FutureWarning,
    stacklevel=2,
)
