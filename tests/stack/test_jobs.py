"""Every job from its launch to its end."""

from collections import Counter

from tests.stack import runs
from tests.stack.conftest import Command
from tests.stack.stack import Stack


def test_parallel_pipeline_runs_each_of_its_50_steps_once(stack: Stack, parallel_run: Command) -> None:
    # Given a finished run of parallel_pipeline
    # When Dagit is asked for its events
    successes = runs.count_events(stack, parallel_run.run_id, "STEP_SUCCESS")

    # Then it succeeded, and each step exactly once
    assert stack.run(parallel_run.run_id)["status"] == "SUCCESS"
    assert successes == Counter({f"not_much_{number}": 1 for number in range(50)})


def test_steps_are_spread_over_all_workers(stack: Stack, parallel_run: Command) -> None:
    # Given a finished run of parallel_pipeline, on the two workers of the default
    # When its steps name who executed them
    executed = Counter(
        worker for names in runs.workers(stack, parallel_run.run_id).values() for worker in names
    )

    # Then both worked, and neither did nearly all
    # (their containers may have been made anew since that run, so they are counted and not named)
    assert len(executed) == len(stack.containers("worker")) == 2
    assert min(executed.values()) >= 10, executed


def test_dagit_loads_every_job_and_asset(stack: Stack) -> None:
    # Given the stack
    # When Dagit lists what there is
    answer = stack.graphql(
        "{ repositoriesOrError { ... on RepositoryConnection { nodes { jobs { name } sensors { name }"
        " schedules { name } assetNodes { assetKey { path } } } } } }"
    )
    (repository,) = answer["repositoriesOrError"]["nodes"]

    # Then all of pipelines/ is there
    jobs = {entry["name"] for entry in repository["jobs"]}
    assert {"parallel_pipeline", "flights", "queues", "flights_by_month", "inbox_flights"} <= jobs
    assert [entry["name"] for entry in repository["sensors"]] == ["inbox"]
    assert [entry["name"] for entry in repository["schedules"]] == ["nightly_flights"]
    assets = {entry["assetKey"]["path"][0] for entry in repository["assetNodes"]}
    assert {"raw_flights", "checked_flights", "monthly_delays", "delay_report"} <= assets
