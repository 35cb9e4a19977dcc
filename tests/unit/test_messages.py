"""The message that starts a step: its id, its form on the wire, and what the run knows cut down to what it needs."""

import json
from dataclasses import replace
from typing import Any

import pytest
from dagster import DagsterRun, JobDefinition
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState, PastExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode

from dagster_stack.messaging.messages import VERSION, RunMessage, StepMessage, step_message, step_task_id
from tests.unit import step_jobs

RUN = "1f0c8e0a-7a4e-4f4c-9b5e-4a1d2c3b4e5f"
NUMBERS = {"numbers": {"result": ["n0", "n1", "n2"]}}


def step_of(job: JobDefinition, key: str, mappings: Any = None) -> ExecutionStep:
    """A step that is ready, as the executor gets it from the plan."""
    plan = create_execution_plan(job)
    plan.resolve(mappings or {})
    step = plan.get_step_by_key(key)
    assert isinstance(step, ExecutionStep)
    return step


def message_for(
    job: JobDefinition, key: str, state: KnownExecutionState, mappings: Any = None
) -> StepMessage:
    run = DagsterRun(job.name, run_id=RUN)
    return step_message(run, step_of(job, key, mappings), state, RetryMode.DEFERRED)


def outputs(*keys: str) -> set[StepOutputHandle]:
    return {StepOutputHandle(key, "result") for key in keys}


# --- the id ---------------------------------------------------------------------------------------------------


def test_a_task_id_is_the_same_in_every_version_of_this_stack() -> None:
    """Written out on purpose: another value would make the steps of a running run strangers after an update."""
    assert step_task_id("run", "step", 1) == "9215a586-cb03-511a-99a2-b3dd2ea6c91a"
    assert step_task_id(RUN, "a.b[c]", 2) == "edf00440-13ae-5a6f-8641-d7029ce046c4"


def test_run_step_and_attempt_each_make_another_id() -> None:
    ids = {step_task_id(run, step, attempt) for run in "ab" for step in "ab" for attempt in (1, 2)}

    assert len(ids) == 8


def test_a_run_has_one_task_id_whoever_sends_it_and_how_often() -> None:
    """A redelivered message has the same id: a run has one task at a time, whoever sends it."""
    launched = RunMessage("a-run", "code")

    assert replace(launched, refused_at=1.0).task_id == launched.task_id
    assert RunMessage("another-run", "code").task_id != launched.task_id


# --- the wire --------------------------------------------------------------------------------------------------


def test_a_message_comes_out_of_json_as_it_went_in() -> None:
    # Given a message for a step that is tried for the second time
    state = KnownExecutionState(
        previous_retry_attempts={"second": 1, "other": 4},
        ready_outputs=outputs("one"),
        step_output_versions={StepOutputHandle("one", "result"): "v1"},
    )
    message = message_for(step_jobs.linear, "second", state)

    # When it goes through the broker
    arrived = StepMessage.from_json(json.loads(json.dumps(message.to_json())))

    # Then all that it says is there
    assert arrived == message
    assert (arrived.run_id, arrived.step_key, arrived.attempt) == (RUN, "second", 2)
    assert arrived.task_id == step_task_id(RUN, "second", 2)
    assert arrived.unpack_retry_mode() is RetryMode.DEFERRED
    assert arrived.unpack_known_state() == KnownExecutionState(
        previous_retry_attempts={"second": 1},
        ready_outputs=outputs("one"),
        step_output_versions={StepOutputHandle("one", "result"): "v1"},
    )


@pytest.mark.parametrize("version", [0, VERSION + 1, "1", None])
def test_a_message_of_another_version_is_refused_with_both_numbers(version: Any) -> None:
    content = message_for(step_jobs.linear, "one", KnownExecutionState()).to_json()

    with pytest.raises(ValueError, match=f"version {version!r}; this code reads {VERSION}"):
        StepMessage.from_json({**content, "version": version})


WHOLE = StepMessage("run", "step", 1, "{}", "enabled", "code", True).to_json()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "version None"),
        ("hello", "version None"),
        ([WHOLE], "version None"),
        ({"run_id": "a", "version": VERSION}, "not a message of this stack: .*step_key"),
        ({**WHOLE, "more": 1}, "unexpected field more"),
        ({**WHOLE, "run_id": None}, "run_id is None"),
        ({**WHOLE, "step_key": 3}, "step_key is 3"),
        ({**WHOLE, "attempt": "1"}, "attempt is '1'"),
        ({**WHOLE, "attempt": True}, "attempt is True"),
        ({**WHOLE, "redeliver": "false"}, "redeliver is 'false'"),
        ({**WHOLE, "refused_at": "yesterday"}, "refused_at is 'yesterday'"),
        ({**WHOLE, "retry_mode": "often"}, "'often' is not a valid RetryMode"),
    ],
)
def test_what_is_no_step_message_is_refused_with_the_reason(content: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StepMessage.from_json(content)


# --- what a step must know ---------------------------------------------------------------------------------------


def test_a_message_does_not_grow_with_its_run() -> None:
    # Given a run of few steps, and one of thousands that was retried and has a parent
    small = KnownExecutionState(
        ready_outputs=outputs("one"),
        parent_state=PastExecutionState("parent", outputs("one"), None),
    )
    others = [f"other_{number}" for number in range(5000)]
    large = KnownExecutionState(
        previous_retry_attempts=dict.fromkeys(others, 1),
        dynamic_mappings={"numbers": {"result": others}},
        step_output_versions=dict.fromkeys(outputs(*others), "v"),
        ready_outputs=outputs("one", *others),
        parent_state=PastExecutionState("parent", outputs("one", *others), None),
    )

    # Then the same step has the same message in both
    assert message_for(step_jobs.linear, "second", large) == message_for(step_jobs.linear, "second", small)


def test_a_step_without_inputs_needs_nothing() -> None:
    state = KnownExecutionState(ready_outputs=outputs("second"), dynamic_mappings=NUMBERS)

    message = message_for(step_jobs.linear, "one", state)

    assert message.attempt == 1
    assert message.unpack_known_state() == KnownExecutionState()


def test_a_fan_in_keeps_the_outputs_that_are_there_and_only_these() -> None:
    """Which of its inputs were produced decides what a fan-in loads."""
    state = KnownExecutionState(ready_outputs=outputs("first", "third", "elsewhere"))

    message = message_for(step_jobs.fan_in, "total", state)

    assert message.unpack_known_state().ready_outputs == outputs("first", "third")


def test_a_collecting_step_keeps_all_mapping_keys() -> None:
    mapped = [f"twice[n{number}]" for number in range(3)]
    state = KnownExecutionState(dynamic_mappings=NUMBERS, ready_outputs=outputs(*mapped, "add_one[n0]"))

    known = message_for(step_jobs.dynamic, "total", state, NUMBERS).unpack_known_state()

    assert known.dynamic_mappings == NUMBERS
    assert known.ready_outputs == outputs(*mapped)


def test_a_step_that_collects_a_dynamic_output_itself_keeps_all_mapping_keys() -> None:
    produced = {StepOutputHandle("numbers", "result", f"n{number}") for number in range(3)}
    state = KnownExecutionState(dynamic_mappings=NUMBERS, ready_outputs=produced)

    known = message_for(step_jobs.dynamic_collected_at_once, "total", state, NUMBERS).unpack_known_state()

    assert known.dynamic_mappings == NUMBERS
    assert known.ready_outputs == produced


def test_a_step_that_collects_nothing_knows_that_it_is_nothing() -> None:
    """Without the empty list the worker could not make the step: its inputs are unknown until then."""
    none: dict[str, dict[str, list[str]]] = {"no_numbers": {"result": []}}

    message = message_for(
        step_jobs.dynamic_without_any, "total", KnownExecutionState(dynamic_mappings=none), none
    )

    assert message.unpack_known_state().dynamic_mappings == none


@pytest.mark.parametrize(
    ("key", "needed"),
    [
        ("add_one[n1]", {StepOutputHandle("numbers", "result", "n1")}),
        ("twice[n1]", outputs("add_one[n1]")),
        ("after_total", outputs("total")),
    ],
)
def test_other_steps_of_a_dynamic_job_carry_no_mapping_keys(key: str, needed: set[StepOutputHandle]) -> None:
    """A map over 10,000 keys would otherwise send 10,000 times 10,000."""
    every = {StepOutputHandle("numbers", "result", f"n{number}") for number in range(3)}
    every |= outputs(*(f"{name}[n{number}]" for name in ("add_one", "twice") for number in range(3)), "total")
    state = KnownExecutionState(dynamic_mappings=NUMBERS, ready_outputs=every)

    known = message_for(step_jobs.dynamic, key, state, NUMBERS).unpack_known_state()

    assert known.dynamic_mappings == {}
    assert known.ready_outputs == needed


def test_what_earlier_runs_made_is_cut_down_in_every_generation() -> None:
    # Given a re-execution of a re-execution
    grandparent = PastExecutionState("grandparent", outputs("one", "x", "y"), None)
    parent = PastExecutionState("parent", outputs("x"), grandparent)

    message = message_for(step_jobs.linear, "second", KnownExecutionState(parent_state=parent))

    # Then the step learns where its input lies, and nothing else
    state = message.unpack_known_state().parent_state
    assert state == PastExecutionState(
        "parent", set(), PastExecutionState("grandparent", outputs("one"), None)
    )
