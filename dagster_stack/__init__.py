"""The platform: what turns a Dagster deployment into one that runs its steps on Celery workers.

`pipelines` may import the names below, and nothing else of this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_stack.errors import InvalidKey, ObjectNotFound
    from dagster_stack.objects.object_store import ObjectStore, StoredObject
    from dagster_stack.objects.resources import stack_resources
    from dagster_stack.run.executor import celery_executor

__all__ = [
    "InvalidKey",
    "ObjectNotFound",
    "ObjectStore",
    "StoredObject",
    "celery_executor",
    "stack_resources",
]

HOMES = {
    "InvalidKey": "errors",
    "ObjectNotFound": "errors",
    "ObjectStore": "objects.object_store",
    "StoredObject": "objects.object_store",
    "celery_executor": "run.executor",
    "stack_resources": "objects.resources",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line must not wait 2 s for Dagster."""
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
