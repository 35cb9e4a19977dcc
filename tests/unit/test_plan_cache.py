"""A run's job: the plan of one step of it, and which plans a process keeps."""

import asyncio
from typing import Any

import pytest
from dagster import DagsterInstance, JobDefinition
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep

from dagster_stack.step import plan_cache
from dagster_stack.step.plan_cache import KEPT_JOBS, PlannedJob, planned_job
from tests.unit import step_jobs
from tests.unit.runs_by_hand import execute, message, started_run

NUMBERS: dict[str, Any] = {"numbers": {"result": ["n0", "n1", "n2"]}}


def planned(instance: DagsterInstance, job: Any, config: dict[str, Any] | None = None) -> PlannedJob:
    return planned_job(instance, started_run(instance, job, config))


# --- the plan of one step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "mappings", "keys"),
    [
        (step_jobs.linear, {}, ["one", "second", "third"]),
        (step_jobs.fan_in, {}, ["first", "total"]),
        (step_jobs.nested, {}, ["outer.before", "outer.inner.inside", "last"]),
        (step_jobs.branching, {}, ["either", "on_the_right", "further_right"]),
        (
            step_jobs.dynamic,
            NUMBERS,
            ["numbers", "add_one[n1]", "twice[n1]", "total", "after_total"],
        ),
        (step_jobs.dynamic_collected_at_once, NUMBERS, ["total"]),
        (step_jobs.dynamic_without_any, {"no_numbers": {"result": []}}, ["total", "after_total"]),
        (step_jobs.with_a_broken_resource, {}, ["needs_resource"]),
    ],
    ids=lambda value: value.name if isinstance(value, JobDefinition) else "",
)
def test_a_step_is_the_one_that_dagsters_own_plan_has(
    instance: DagsterInstance, job: JobDefinition, mappings: dict[str, Any], keys: list[str]
) -> None:
    # Given the state in which the executor sends a step
    state = KnownExecutionState(dynamic_mappings=mappings)
    whole = create_execution_plan(job, known_state=state)
    whole.resolve(mappings)

    for key in keys:
        # When this process plans that step alone
        plan = planned(instance, job).plan_for(key, state)

        # Then it is Dagster's step, and the only one to be executed
        step, dagsters = plan.get_step_by_key(key), whole.get_step_by_key(key)
        assert isinstance(step, ExecutionStep)
        assert isinstance(dagsters, ExecutionStep)
        assert step.step_inputs == dagsters.step_inputs
        assert step.step_outputs == dagsters.step_outputs
        assert (step.handle, step.tags, step.pool) == (dagsters.handle, dagsters.tags, dagsters.pool)
        assert plan.step_keys_to_execute == [key]
        assert plan.known_state == state
        # And each output that it loads can be looked up
        for step_input in step.step_inputs:
            for output in step_input.get_step_output_handle_dependencies():
                assert plan.get_step_output(output) == whole.get_step_output(output)


def test_a_plan_is_as_large_for_a_large_job_as_for_a_small_one(instance: DagsterInstance) -> None:
    sizes = [
        len(planned(instance, job).plan_for("step_5", KnownExecutionState()).step_dict)
        for job in (step_jobs.chain_10, step_jobs.chain_100)
    ]

    assert sizes == [2, 2]


def test_a_fan_in_has_only_its_own_sources_in_its_plan(instance: DagsterInstance) -> None:
    state = KnownExecutionState(
        dynamic_mappings=NUMBERS, ready_outputs={StepOutputHandle("twice[n0]", "result")}
    )

    plan = planned(instance, step_jobs.dynamic).plan_for("total", state)

    assert {step.key for step in plan.steps} == {"total", "twice[n0]", "twice[n1]", "twice[n2]"}


# --- what is kept -----------------------------------------------------------------------------------------------


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs that were planned, each time."""
    made: list[str] = []
    plan = plan_cache._plan

    def counted(instance: DagsterInstance, run: Any) -> PlannedJob:
        made.append(run.job_name)
        return plan(instance, run)

    monkeypatch.setattr(plan_cache, "_plan", counted)
    return made


def test_runs_that_are_the_same_share_a_plan(instance: DagsterInstance, plans: list[str]) -> None:
    first = planned(instance, step_jobs.linear)
    second = planned(instance, step_jobs.linear)

    assert second is first
    assert plans == ["linear"]


def test_each_configuration_has_a_plan_of_its_own(instance: DagsterInstance, plans: list[str]) -> None:
    def config(number: int) -> dict[str, Any]:
        return {"ops": {"configured": {"config": {"number": number}}}}

    one, two = (planned(instance, step_jobs.with_config, config(number)) for number in (1, 2))

    assert one.config.ops["configured"].config == {"number": 1}
    assert two.config.ops["configured"].config == {"number": 2}
    assert planned(instance, step_jobs.with_config, config(1)) is one
    assert len(plans) == 2


def test_each_selection_of_ops_has_a_plan_of_its_own(instance: DagsterInstance, plans: list[str]) -> None:
    # Given a run of all ops, and one of two of them
    whole = planned(instance, step_jobs.linear)
    selected = step_jobs.linear.get_subset(op_selection=["one", "second"])
    run = started_run(
        instance, step_jobs.linear, op_selection=["one", "second"], resolved_op_selection={"one", "second"}
    )
    part = planned_job(instance, run)

    assert [step.key for step in part.plan.steps] == [
        step.key for step in create_execution_plan(selected).steps
    ]
    assert len(whole.plan.steps) == 3
    assert len(plans) == 2


def test_only_the_jobs_that_were_used_last_are_kept(
    instance: DagsterInstance, plans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEPT_JOBS >= 2
    monkeypatch.setattr(plan_cache, "KEPT_JOBS", 2)
    planned(instance, step_jobs.linear)
    planned(instance, step_jobs.nested)
    planned(instance, step_jobs.linear)
    planned(instance, step_jobs.alone)
    assert plans == ["linear", "nested", "alone"]

    planned(instance, step_jobs.linear)
    planned(instance, step_jobs.nested)

    assert plans == ["linear", "nested", "alone", "nested"]


# --- what a step leaves behind ------------------------------------------------------------------------------------


def test_no_event_loop_of_a_step_is_left(instance: DagsterInstance) -> None:
    """Each open loop costs three file descriptors: a worker's process would be out of them after 300 steps."""
    run = started_run(instance, step_jobs.alone)
    opened: list[asyncio.AbstractEventLoop] = []
    new_event_loop = asyncio.new_event_loop

    def remembered() -> asyncio.AbstractEventLoop:
        opened.append(new_event_loop())
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", remembered)
        execute(message(instance, run, "one"))

    assert opened
    assert all(loop.is_closed() for loop in opened)
