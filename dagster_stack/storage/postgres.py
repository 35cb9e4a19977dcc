"""Until 0.2: where PooledPostgresStorage was. A dagster.yaml of before names it."""

import warnings

from dagster_stack.store.instance_storage import PooledPostgresStorage

__all__ = ["PooledPostgresStorage"]

warnings.warn(
    "dagster.yaml names dagster_stack.storage.postgres, which is dagster_stack.store.instance_storage now: correct it before 0.2",
    FutureWarning,
    stacklevel=2,
)
