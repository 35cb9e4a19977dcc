"""The model of a run's progress: answers in the shape that Dagit 1.13 gives, snapshots out."""

from typing import Any

import pytest

from dagster_stack.client.dagit import RunQueue
from dagster_stack.client.progress import (
    ErrorReport,
    Progress,
    Rate,
    StepState,
    failure_report,
    summary,
    waiting_for,
)
from dagster_stack.messaging.management import QueueDepth
from dagster_stack.monitoring import formatting

Json = dict[str, Any]


def plan_step(key: str, *upstream: Json, kind: str = "COMPUTE", queue: str | None = None) -> Json:
    tags = [{"key": "dagster-celery/queue", "value": queue}] if queue else []
    return {"key": key, "kind": kind, "metadata": tags, "inputs": [{"dependsOn": list(upstream)}]}


def event(kind: str, step: str | None = None, message: str = "", error: Json | None = None) -> Json:
    return {"eventType": kind, "stepKey": step, "message": message, "error": error}


def answer(*events: Json, status: str = "STARTED", plan: list[Json] | None = None, **run: Any) -> Json:
    return {
        "status": status,
        "startTime": 1000.0,
        "endTime": None,
        "tags": [],
        "executionPlan": {"steps": plan} if plan is not None else None,
        "eventConnection": {"cursor": "c", "hasMore": False, "events": list(events)},
        **run,
    }


def dynamic_output(step: str, key: str) -> Json:
    return event("STEP_OUTPUT", step, f'Yielded output "result" mapping key "{key}" of type "Any".')


FAN = {"key": "fan", "kind": "COMPUTE"}
MAPPED = {"key": "mapped[?]", "kind": "UNRESOLVED_MAPPED"}
DYNAMIC_PLAN = [
    plan_step("second[?]", MAPPED, kind="UNRESOLVED_MAPPED"),
    plan_step("fan"),
    plan_step("mapped[?]", FAN, kind="UNRESOLVED_MAPPED"),
    plan_step("collect", {"key": "second[?]", "kind": "UNRESOLVED_MAPPED"}, kind="UNRESOLVED_COLLECT"),
]


def test_steps_are_counted_by_their_last_event() -> None:
    progress = Progress().after(
        answer(
            event("STEP_START", "a"),
            event("STEP_START", "b"),
            event("STEP_SUCCESS", "a"),
            event("STEP_SKIPPED", "c"),
            event("STEP_START", "d"),
            event("STEP_FAILURE", "d"),
            plan=[plan_step(key) for key in "abcde"],
        )
    )

    assert (progress.total, progress.done) == (5, 2)
    assert progress.in_state(StepState.RUNNING) == ["b"]
    assert progress.in_state(StepState.FAILED) == ["d"]


def test_an_answer_without_the_plan_keeps_the_plan_and_goes_on_from_the_events_before() -> None:
    first = Progress().after(answer(event("STEP_START", "a"), plan=[plan_step("a"), plan_step("b")]))

    second = first.after(answer(event("STEP_SUCCESS", "a")))

    assert (second.total, second.done) == (2, 1)
    assert first.done == 0, "a snapshot never changes"


def test_a_step_that_fails_and_succeeds_when_tried_again_is_no_failure() -> None:
    progress = Progress().after(
        answer(event("STEP_START", "a"), event("STEP_FAILURE", "a"), plan=[plan_step("a")])
    )
    assert list(progress.failures) == ["a"]

    progress = progress.after(answer(event("STEP_RESTARTED", "a"), event("STEP_SUCCESS", "a")))

    assert not progress.failures
    assert progress.done == 1


def test_a_step_up_for_retry_is_neither_running_nor_failed() -> None:
    progress = Progress().after(
        answer(event("STEP_START", "a"), event("STEP_UP_FOR_RETRY", "a"), plan=[plan_step("a")])
    )

    assert progress.count(StepState.RETRYING) == 1
    assert progress.count(StepState.RUNNING) == progress.count(StepState.FAILED) == 0
    assert waiting_for(progress, None, ()) == "Waiting to try again: a."


def test_mapped_steps_count_once_until_their_keys_are_known_and_then_once_a_key() -> None:
    progress = Progress().after(answer(plan=DYNAMIC_PLAN))
    assert (progress.total, progress.known) == (4, False)

    progress = progress.after(answer(*[dynamic_output("fan", key) for key in "xyz"]))
    assert (progress.total, progress.known) == (8, False), "fan may yet yield more"

    progress = progress.after(answer(event("STEP_SUCCESS", "fan")))
    assert (progress.total, progress.known) == (8, True), "fan, 3 mapped, 3 second, collect"


def test_a_dynamic_output_yielded_again_by_a_retry_counts_once() -> None:
    progress = Progress().after(answer(plan=DYNAMIC_PLAN))

    progress = progress.after(answer(dynamic_output("fan", "x"), dynamic_output("fan", "x")))

    assert progress.total == 4


def test_a_dynamic_output_without_any_key_leaves_no_mapped_steps() -> None:
    progress = Progress().after(answer(event("STEP_SUCCESS", "fan"), plan=DYNAMIC_PLAN))

    assert (progress.total, progress.known) == (2, True)


def test_mapped_steps_are_counted_by_their_own_keys_where_the_output_hides_the_mapping_key() -> None:
    progress = Progress().after(
        answer(
            event("STEP_OUTPUT", "fan", "worded otherwise"),
            event("STEP_SUCCESS", "fan"),
            event("STEP_START", "mapped[x]"),
            event("STEP_START", "mapped[y]"),
            plan=DYNAMIC_PLAN,
        )
    )

    assert progress.total == 4, "fan, two mapped, collect; none of second[?] seen so far"


USER_ERROR = {
    "className": "DagsterExecutionStepExecutionError",
    "message": 'dagster._core.errors.DagsterExecutionStepExecutionError: Error occurred while executing op "a":\n',
    "stack": ['  File "/venv/dagster/_core/execute.py", line 1, in run\n    op()\n'],
    "errorChain": [
        {
            "isExplicitLink": True,
            "error": {
                "className": "ValueError",
                "message": "ValueError: bad row 17\n",
                "stack": [
                    '  File "/venv/dagster/_core/compute.py", line 2, in compute\n    fn()\n',
                    '  File "/app/pipelines/load.py", line 9, in load\n    raise ValueError\n    ^^^^^\n',
                ],
            },
        },
        {
            "isExplicitLink": False,
            "error": {"className": "KeyError", "message": "KeyError: 'month'\n", "stack": []},
        },
    ],
}


def test_a_failed_step_is_reported_with_the_users_exception_its_stack_and_its_causes() -> None:
    progress = Progress().after(
        answer(
            event("STEP_FAILURE", "load", error=USER_ERROR),
            event("RUN_FAILURE", message="Execution failed. Steps failed: ['load'].", error=USER_ERROR),
            status="FAILURE",
            plan=[plan_step("load")],
        )
    )

    assert [line for _, line in failure_report(progress)] == [
        "Step load failed:",
        "  ValueError: bad row 17",
        '    File "/app/pipelines/load.py", line 9, in load',
        "      raise ValueError",
        "  while handling KeyError: 'month'",
        "Execution failed. Steps failed: ['load'].",
    ]


def test_a_run_that_fails_before_any_step_is_reported_with_its_own_error() -> None:
    error = {
        "className": "ImportError",
        "message": "ImportError: no pipelines",
        "stack": [],
        "errorChain": [],
    }
    progress = Progress().after(
        answer(
            event("RUN_FAILURE", message="The run's process died.", error=error), status="FAILURE", plan=[]
        )
    )

    lines = [line for _, line in failure_report(progress)]

    assert lines == ["The run's process died.", "  ImportError: no pipelines"]


def test_a_failure_without_a_reason_says_where_to_look() -> None:
    progress = Progress().after(answer(event("STEP_FAILURE", "a"), status="FAILURE", plan=[plan_step("a")]))

    assert ("plain", "  Dagster gives no reason: see the step's log.") in list(failure_report(progress))


def test_of_many_failed_steps_the_first_are_explained_and_all_are_named() -> None:
    keys = [f"s{number}" for number in range(25)]
    progress = Progress().after(
        answer(
            *[event("STEP_FAILURE", key, error=USER_ERROR) for key in keys],
            status="FAILURE",
            plan=[plan_step(key) for key in keys],
        )
    )

    text = "\n".join(line for _, line in failure_report(progress))

    assert text.count("ValueError: bad row 17") == 10
    assert "15 more steps failed: s10, s11" in text
    assert all(key in text for key in keys)


def test_a_run_that_dagster_will_retry_says_so() -> None:
    tags = [{"key": "dagster/will_retry", "value": "true"}]
    progress = Progress().after(answer(status="FAILURE", tags=tags, plan=[]))

    assert "starts this run again" in "\n".join(line for _, line in failure_report(progress))


def test_dagsters_own_exception_is_named_without_its_private_module() -> None:
    error = {
        "className": "Failure",
        "message": "dagster._core.definitions.events.Failure: empty\n",
        "stack": [],
    }

    report = ErrorReport.from_answer(error)

    assert report is not None
    assert report.message == "Failure: empty"


def test_summary_tells_status_time_and_steps() -> None:
    steps = [event("STEP_SUCCESS", key) for key in "abcd"]
    plan = [plan_step(key) for key in "abcd"]
    won = Progress().after(answer(*steps, status="SUCCESS", plan=plan, endTime=1002.0))
    lost = Progress().after(
        answer(*steps[:2], event("STEP_FAILURE", "c"), status="FAILURE", plan=plan, endTime=1002.0)
    )

    assert summary(won, elapsed=99) == "SUCCESS in 2.0 s: 4 of 4 steps done, 2.0 steps/s"
    assert summary(lost, elapsed=99) == "FAILURE in 2.0 s: 2 of 4 steps done, 1 failed, 1 not finished"


def test_summary_of_a_run_that_never_started_has_the_time_that_was_waited() -> None:
    progress = Progress().after(answer(status="CANCELED", plan=[plan_step("a")], startTime=None))

    assert summary(progress, elapsed=7.04).startswith("CANCELED in 7.0 s")


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (None, "dagster-daemon starts the run"),
        (RunQueue(daemon_alive=False, in_progress=0, limit=10), "docker compose up -d daemon"),
        (RunQueue(daemon_alive=True, in_progress=10, limit=10), "10 runs are in progress, the limit is 10"),
        (RunQueue(daemon_alive=True, in_progress=3, limit=None), "takes it next"),
    ],
)
def test_a_queued_run_says_what_it_waits_for(queue: RunQueue | None, words: str) -> None:
    progress = Progress().after(answer(status="QUEUED", plan=[]))

    assert words in waiting_for(progress, queue, ())


def test_a_queue_without_worker_is_named_only_when_this_run_needs_it() -> None:
    backlog = [QueueDepth("dagster", 0, 0, 1), QueueDepth("heavy", 3, 0, 0)]
    plan = [plan_step("a"), plan_step("b", queue="heavy")]
    needs_heavy = Progress().after(answer(event("STEP_START", "a"), plan=plan))
    past_heavy = needs_heavy.after(answer(event("STEP_START", "b")))

    assert "No worker listens on the queue heavy: the run's log says how to start one" in waiting_for(
        needs_heavy, None, backlog
    )
    assert waiting_for(past_heavy, None, backlog) == ""


def test_a_run_whose_steps_have_all_ended_waits_for_its_end_only() -> None:
    progress = Progress().after(answer(event("STEP_SUCCESS", "a"), plan=[plan_step("a")]))

    assert "waiting for the run to end" in waiting_for(progress, None, ())


def test_rate_is_that_of_the_last_ten_seconds() -> None:
    rate = Rate()

    assert rate.after(0, 0) == 0
    assert rate.after(5, 10) == 2
    assert rate.after(10, 20) == 2
    # Given a stall of 20 s, the steps before it no longer count.
    for now in range(11, 31):
        stalled = rate.after(now, 20)
    assert stalled == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (245, "4 min 05 s"), (3725, "1 h 02 min")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert formatting.seconds(seconds, exact=True) == text
