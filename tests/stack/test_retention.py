"""What is old goes from the real stores, and the tables give their space back."""

import re

import pytest

from tests.stack.stack import Stack


@pytest.fixture
def old_run(stack: Stack) -> str:
    """A run that ended two years ago, and belongs to no other one."""
    run_id = stack.succeed("queues")
    stack.sql(f"update runs set end_time = end_time - 2 * 365 * 86400 where run_id = '{run_id}'")
    return run_id


def test_an_old_run_goes_with_its_objects_when_it_is_asked_for(stack: Stack, old_run: str) -> None:
    # Given a run that ended two years ago, and one of today
    young = stack.succeed("queues")
    outputs, logs = f"storage/storage/{old_run}/", f"logs/storage/{old_run}/"
    assert stack.keys(outputs)
    assert stack.keys(logs)

    # When somebody asks what would go
    told = stack.make("retention", "DRY_RUN=1").stdout

    # Then it is said, and all is there still
    assert re.search(
        r"would free whole runs with their outputs: \d+ runs, [\d,]+ rows .*, [\d,]+ objects ", told
    )
    assert stack.run(old_run)["status"] == "SUCCESS"

    # When it is to go
    assert "freed whole runs with their outputs: " in stack.make("retention").stdout

    # Then it is gone from Dagit, Postgres and the bucket, and nothing else is
    assert not stack.run(old_run)
    ((rows,),) = stack.sql(f"select count(*) from event_logs where run_id = '{old_run}'")
    assert rows == "0"
    assert not stack.keys(outputs)
    assert not stack.keys(logs)
    assert stack.run(young)["status"] == "SUCCESS"
    assert stack.keys(f"storage/storage/{young}/")


def test_tables_are_compacted_while_work_goes_on(stack: Stack) -> None:
    stack.sql(
        "insert into event_logs (run_id, event, dagster_event_type)"
        " select 'none', repeat(md5(i::text), 40), 'NONE' from generate_series(1, 40000) as i"
    )
    stack.sql("delete from event_logs where run_id = 'none'")
    before = size_of_event_log(stack)
    run_id = stack.launch("parallel_pipeline")

    told = stack.make("compact").stdout

    assert "event_logs: " in told
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS"
    # These rows took some 55 MB, beside those of other tests
    assert size_of_event_log(stack) < before - 40_000_000
    assert not stack.sql("select from pg_extension where extname = 'pg_repack'")


def size_of_event_log(stack: Stack) -> int:
    ((size,),) = stack.sql("select pg_total_relation_size('event_logs')")
    return int(size)
