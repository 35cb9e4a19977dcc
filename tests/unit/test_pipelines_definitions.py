"""What Dagit loads, and the two small jobs."""

import subprocess
import sys
from pathlib import Path

import pytest
from dagster import DefaultScheduleStatus, DefaultSensorStatus, RunConfig, validate_run_config

from pipelines import defs
from pipelines.flights.inbox import inbox
from pipelines.flights.job import nightly_flights
from pipelines.parallel import parallel_pipeline
from pipelines.queues import HEAVY, LIGHT, LIGHT_PRIORITIES, Nap, Start, order_table, queues
from tests.unit.pipelines_data import local_resources


def test_all_definitions_load_and_resolve() -> None:
    defs.validate_loadable(defs)
    names = {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    assert names == {"parallel_pipeline", "queues", "flights", "flights_by_month", "inbox_flights"}


def test_loading_the_code_loads_no_heavy_library() -> None:
    program = (
        "import pipelines, sys; print([m for m in ('duckdb', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("job", ["parallel_pipeline", "queues", "flights"])
def test_a_job_needs_no_config(job: str) -> None:
    assert validate_run_config(defs.resolve_job_def(job), {})


def test_the_schedule_waits_to_be_turned_on_and_the_sensor_does_not() -> None:
    assert nightly_flights.default_status == DefaultScheduleStatus.STOPPED
    assert inbox.default_status == DefaultSensorStatus.RUNNING


def test_parallel_pipeline_has_fifty_steps_that_wait_for_nothing() -> None:
    structure = parallel_pipeline.dependencies
    assert {node.alias for node in structure} == {f"not_much_{number}" for number in range(50)}
    assert not any(structure.values())


def test_queues_sends_light_steps_by_priority_and_heavy_ones_to_their_own_queue() -> None:
    light = {op.name: (op.tags["dagster-celery/queue"], op.tags["dagster-celery/priority"]) for op in LIGHT}
    assert list(light.values()) == [("dagster", str(number)) for number in LIGHT_PRIORITIES]
    assert set(range(1, 11)) == set(LIGHT_PRIORITIES)
    assert {op.tags["dagster-celery/queue"] for op in HEAVY} == {"heavy"}


def test_queues_lists_its_steps_as_they_started(tmp_path: Path) -> None:
    # Given steps that sleep no time
    config = RunConfig({op.name: Nap(seconds=0) for op in [*LIGHT, *HEAVY]})
    # When the job runs
    result = queues.execute_in_process(run_config=config, resources=local_resources(tmp_path))
    # Then its last step lists them all
    event = next(event for event in result.events_for_node("start_order") if event.is_successful_output)
    table = str(event.step_output_data.metadata["order"].value)
    assert all(f"| {op.name} |" in table for op in [*LIGHT, *HEAVY])


def test_the_table_is_sorted_by_start() -> None:
    starts = [Start("late", "heavy", 5, 20.0, "a (pid 1)"), Start("early", "dagster", 9, 10.0, "b (pid 2)")]
    assert [line.split(" | ")[4] for line in order_table(starts).splitlines()[2:]] == ["early", "late"]
