"""The platform: what turns a Dagster deployment into one that runs its steps on Celery workers.

`pipelines` may import the names below, and nothing else of this package.
"""

from dagster_stack.errors import ObjectNotFound
from dagster_stack.executor import celery_executor
from dagster_stack.storage import ObjectStore, StoredObject, stack_resources

__all__ = ["ObjectNotFound", "ObjectStore", "StoredObject", "celery_executor", "stack_resources"]
