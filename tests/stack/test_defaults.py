"""A project that names neither executor nor IO manager, launched in Dagit: its steps run on the workers."""

from collections.abc import Iterator

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, OwnDagit
from tests.stack.stack import Stack

ALL_ASSETS = "__ASSET_JOB"


@pytest.fixture(scope="module")
def project(stack: Stack) -> AdHoc:
    project = AdHoc(stack, "default_jobs")
    project.install()
    return project


@pytest.fixture(scope="module")
def dagit(project: AdHoc) -> Iterator[OwnDagit]:
    with project.dagit() as dagit:
        yield dagit


def texts(stack: Stack, run_id: str) -> list[str]:
    return [str(event["message"]) for event in stack.events(run_id)]


def workers(stack: Stack, run_id: str) -> dict[str, str]:
    """The worker that executed each step of a run that succeeds."""
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    return {each.step: each.worker.split("@")[0] for each in runs.executions(stack, run_id)}


@pytest.mark.parametrize("job", [ALL_ASSETS, "numbers"])
def test_assets_are_made_and_checked_by_workers(stack: Stack, dagit: OwnDagit, job: str) -> None:
    run_id = dagit.launch(job)

    assert workers(stack, run_id) == {"one": "dagster", "two": "dagster", "two_two_is_right": "dagster"}
    assert any(event.get("eventType") == "ASSET_CHECK_EVALUATION" for event in stack.events(run_id))
    # And what they return is in the bucket
    assert stack.metadata(run_id, "two")["uri"] == f"s3://{stack.bucket}/storage/@assets/two.pickle"


def test_what_one_worker_stores_another_one_finds(stack: Stack, dagit: OwnDagit) -> None:
    run_id = dagit.launch("chained")

    assert workers(stack, run_id) == {"first": "dagster", "second": "heavy"}


def test_a_run_is_configured_as_dagsters_default_executor_is(stack: Stack, dagit: OwnDagit) -> None:
    limited = dagit.launch("chained", {"execution": {"config": {"multiprocess": {"max_concurrent": 1}}}})
    within = dagit.launch("chained", {"execution": {"config": {"in_process": {}}}})

    assert workers(stack, limited) == {"first": "dagster", "second": "heavy"}
    assert workers(stack, within) == {}
    assert len([text for text in texts(stack, within) if "use no workers" in text]) == 1


def test_a_job_that_names_dagsters_executor_says_that_it_uses_no_workers(
    stack: Stack, dagit: OwnDagit
) -> None:
    run_id = dagit.launch("by_processes")

    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert 'Executing step "second" in subprocess.' in texts(stack, run_id)
    (told,) = (text for text in texts(stack, run_id) if "use no workers" in text)
    assert 'by its executor "multiprocess"' in told
    assert "EXECUTOR=celery in .env" in told


def test_it_can_be_mapped_to_the_workers(stack: Stack, project: AdHoc) -> None:
    run_id = project.run("by_processes", DAGSTER_STACK_EXECUTOR="celery")

    assert workers(stack, run_id) == {"first": "dagster", "second": "heavy"}
    assert len([text for text in texts(stack, run_id) if "By EXECUTOR=celery" in text]) == 1


def test_outputs_in_memory_are_refused_at_launch(dagit: OwnDagit) -> None:
    with pytest.raises(AssertionError, match="persistent IO manager"):
        dagit.launch("in_memory")
