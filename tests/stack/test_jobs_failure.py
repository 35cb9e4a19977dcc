"""A failing step: what fails with it, and what a re-execution repeats."""

import json

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc
from tests.stack.stack import LAUNCH, Stack

LIGHT = ("light_01_priority_03", "light_02_priority_07")
LOST = "light_04_priority_10"


def test_a_failing_step_fails_the_run_and_skips_what_depends_on_it(stack: Stack) -> None:
    # Given a run config that names an object which is not there
    config = {"ops": {"take_file": {"config": {"key": "test-failure/absent.csv", "etag": "0" * 32}}}}

    # When the job runs
    run_id = stack.launch("inbox_flights", config)

    # Then it fails, says so at the step, and the dependent step is skipped
    assert stack.wait_for_run(run_id)["status"] == "FAILURE"
    assert runs.count_events(stack, run_id, "STEP_FAILURE") == {"take_file": 1}
    assert runs.count_events(stack, run_id, "STEP_START") == {"take_file": 1}
    messages = [
        event.get("message") or "" for event in stack.events(run_id) if event.get("stepKey") == "report"
    ]
    assert any("Dependencies for step report failed: ['take_file']" in message for message in messages), (
        messages
    )
    (failure,) = [text for text in stack.failure_texts(run_id) if text.startswith("take_file")]
    assert "test-failure/absent.csv: the object is gone" in failure


def test_a_reexecution_from_failure_repeats_only_what_is_missing(stack: Stack) -> None:
    # Given a run whose last step fails, since what another step left for it is gone
    naps = {f"heavy_{number}": {"config": {"seconds": 6 if number == 1 else 0}} for number in range(1, 5)}
    run_id = stack.launch("queues", {"ops": naps | {step: {"config": {"seconds": 0}} for step in LIGHT}})
    runs.wait_for_event(stack, run_id, "STEP_SUCCESS", LOST)
    key = f"storage/storage/{run_id}/{LOST}/result"
    content = stack.s3.get_object(Bucket=stack.bucket, Key=key)["Body"].read()
    stack.s3.delete_object(Bucket=stack.bucket, Key=key)
    assert stack.wait_for_run(run_id)["status"] == "FAILURE"
    assert runs.count_events(stack, run_id, "STEP_FAILURE") == {"start_order": 1}

    # When it is there again, and the run is executed again from the failure
    stack.s3.put_object(Bucket=stack.bucket, Key=key, Body=content)
    again = runs.reexecute(stack, run_id)

    # Then the new run does the failed step alone, with the first run's data
    assert stack.wait_for_run(again)["status"] == "SUCCESS", stack.failure_texts(again)
    assert runs.count_events(stack, again, "STEP_START") == {"start_order": 1}
    assert LOST in stack.metadata(again, "start_order")["order"]


def test_a_step_with_a_retry_policy_is_tried_again(stack: Stack, ad_hoc: AdHoc) -> None:
    # Given a job whose step fails twice and has a policy of two retries
    # When it runs
    run_id = ad_hoc.run("retrying")

    # Then the third attempt makes it a success
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert runs.count_events(stack, run_id, "STEP_UP_FOR_RETRY") == {"stubborn": 2}
    assert runs.count_events(stack, run_id, "STEP_SUCCESS") == {"stubborn": 1}


def test_an_executor_config_is_checked_before_anything_runs(stack: Stack) -> None:
    # Given a config with a field that the executor does not have
    params = {
        "selector": {**runs.LOCATION, "jobName": "parallel_pipeline"},
        "runConfigData": json.dumps({"execution": {"config": {"brocker": "amqp://x"}}}),
    }

    # When it is launched
    answer = stack.graphql(LAUNCH, params=params)["launchRun"]

    # Then Dagit refuses it and names the field
    assert answer["__typename"] == "RunConfigValidationInvalid"
    assert "brocker" in answer["errors"][0]["message"]
