"""What measured runs leave behind, removed: their rows in the database and their objects in the bucket."""

from typing import Any

from dagster import DagsterInstance, RunsFilter

from bench.runs import TAG
from dagster_stack.objects.client import s3_client
from dagster_stack.settings import S3Settings, Settings


def remove() -> int:
    """Remove every run of this benchmark, also those of one that was cut off; says how many there were."""
    settings = Settings.from_environment()
    assert settings.s3
    with DagsterInstance.get() as instance:
        runs = list(instance.get_runs(RunsFilter(tags={TAG: "true"})))
        for run in runs:
            for prefix in (
                f"{settings.data_prefix}/storage/{run.run_id}/",
                f"{settings.log_prefix}/storage/{run.run_id}/",
                f"{settings.s3.key_prefix}reports/{run.job_name}/{run.run_id}/",
            ):
                remove_objects(settings.s3, prefix)
            instance.delete_run(run.run_id)
    return len(runs)


def remove_objects(place: S3Settings, prefix: str) -> None:
    client: Any = s3_client(place.endpoint_url)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix):
        # One by one: S3 wants a checksum for a request that names many, of a kind that stores differ in.
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket=place.bucket, Key=entry["Key"])
