"""Where things lie: data between steps in S3, runs and events in Postgres, nothing beside them."""

import pickle

import pytest

from tests.stack.conftest import Command
from tests.stack.stack import Stack


def test_data_between_steps_is_in_the_bucket(stack: Stack, flights_run: Command) -> None:
    # Given a finished run of flights
    # When the bucket is listed with root's keys
    prefix = f"storage/storage/{flights_run.run_id}/"
    listed = {
        entry["Key"].removeprefix(prefix)
        for entry in stack.s3_root.list_objects_v2(Bucket=stack.bucket, Prefix=prefix)["Contents"]
    }

    # Then each month's output is there, and the object is what the step returned
    months = {f"month_{month:02}" for month in range(1, 13)}
    assert listed >= {f"{month}/result" for month in months} | {"join_months/result"}
    key = f"{prefix}split_by_month/month_01"
    assert pickle.loads(stack.s3_root.get_object(Bucket=stack.bucket, Key=key)["Body"].read()) == (
        "raw/flights/2013-01.csv"
    )


def test_runs_and_events_are_in_postgres(stack: Stack, parallel_run: Command) -> None:
    # Given a finished run of parallel_pipeline
    # When Dagster's database is asked
    run_id = parallel_run.run_id
    ((status,),) = stack.sql(f"select status from runs where run_id = '{run_id}'")
    ((events,),) = stack.sql(f"select count(*) from event_logs where run_id = '{run_id}'")
    ((successes,),) = stack.sql(
        f"select count(*) from event_logs where run_id = '{run_id}' and dagster_event_type = 'STEP_SUCCESS'"
    )

    # Then it holds the run and as many events as Dagit shows
    assert status == "SUCCESS"
    assert int(events) == len(stack.events(run_id))
    assert int(successes) == 50


@pytest.mark.parametrize("service", ["dagit", "daemon", "runner", "worker", "worker-heavy"])
def test_no_service_keeps_a_database_of_its_own(stack: Stack, service: str, parallel_run: Command) -> None:
    # Given a service that took part in a run
    # When its files are searched for SQLite's
    found = stack.exec(
        service, "sh", "-c", "find /opt/dagster /tmp \\( -name '*.db*' -o -name '*sqlite*' \\) 2>/dev/null",
        check=False,
    ).stdout  # fmt: skip

    # Then there are none
    assert found == ""
