"""The resources that every job may ask for by name."""

from typing import Any

from dagster_stack.objects.io_manager import S3IOManager
from dagster_stack.objects.object_store import LocalObjectStore, S3ObjectStore
from dagster_stack.objects.pickles import LocalIOManager
from dagster_stack.settings import Settings


def stack_resources(settings: Settings | None = None) -> dict[str, Any]:
    """The resources of every job: `io_manager` for data between steps, `store` for objects."""
    settings = settings or Settings.from_environment()
    if settings.s3 is None:
        folder = settings.store_folder
        return {
            "io_manager": LocalIOManager(base_dir=str(folder / settings.data_prefix)),
            "store": LocalObjectStore(folder=str(folder)),
        }
    return {
        "io_manager": S3IOManager(
            bucket=settings.s3.bucket,
            prefix=settings.data_prefix,
            endpoint_url=settings.s3.endpoint_url,
        ),
        "store": S3ObjectStore(
            bucket=settings.s3.bucket,
            endpoint_url=settings.s3.endpoint_url,
            public_url=settings.s3.public_url,
            key_prefix=settings.s3.key_prefix,
        ),
    }
