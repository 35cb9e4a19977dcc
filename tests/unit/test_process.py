"""What a worker's process keeps between steps, and what it does not let a step keep."""

import asyncio
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, JobDefinition
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep

from dagster_stack import process
from dagster_stack.process import KEPT_JOBS, KEPT_RUNS, PlannedJob, known_run, planned_job, undisturbed
from tests.unit import step_jobs
from tests.unit.runs_by_hand import started_run

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
    plan = process._plan

    def counted(instance: DagsterInstance, run: Any) -> PlannedJob:
        made.append(run.job_name)
        return plan(instance, run)

    monkeypatch.setattr(process, "_plan", counted)
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
    monkeypatch.setattr(process, "KEPT_JOBS", 2)
    planned(instance, step_jobs.linear)
    planned(instance, step_jobs.nested)
    planned(instance, step_jobs.linear)
    planned(instance, step_jobs.alone)
    assert plans == ["linear", "nested", "alone"]

    planned(instance, step_jobs.linear)
    planned(instance, step_jobs.nested)

    assert plans == ["linear", "nested", "alone", "nested"]


def test_a_run_is_read_once_and_few_are_kept(instance: DagsterInstance) -> None:
    run = started_run(instance, step_jobs.linear)

    assert known_run(run.run_id) is known_run(run.run_id)
    assert known_run.cache_parameters()["maxsize"] == KEPT_RUNS


def test_a_forked_process_opens_an_instance_of_its_own(instance: DagsterInstance) -> None:
    """Its parent's connections, and what came through them, are not its own."""
    assert known_run(started_run(instance, step_jobs.linear).run_id)
    assert process.warm_instance.cache_info().currsize == known_run.cache_info().currsize == 1

    with warnings.catch_warnings():
        # Python 3.12 and later warn when the parent has threads; this child only looks and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(process.warm_instance.cache_info().currsize + known_run.cache_info().currsize)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert process.warm_instance() is instance


# --- what a step does to its process --------------------------------------------------------------------------


def handler(*_: Any) -> None: ...


def leave_another_folder(tmp_path: Path) -> None:
    os.chdir(tmp_path)


def leave_a_deleted_folder(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def change_variables(_: Path) -> None:
    os.environ["LEFT_BY_A_STEP"] = "1"
    os.environ["KEPT"] = "changed"
    del os.environ["REMOVED"]


def clear_variables(_: Path) -> None:
    os.environ.clear()


def change_signals(_: Path) -> None:
    for number in process.KEPT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def replace_streams(_: Path) -> None:
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()


def close_a_stream_of_its_own(_: Path) -> None:
    sys.stdout = io.StringIO()
    sys.stdout.close()


def change_arguments(_: Path) -> None:
    sys.argv[:] = ["other"]


def replace_arguments(_: Path) -> None:
    sys.argv = ["other"]


def change_path(_: Path) -> None:
    sys.path.insert(0, "/nowhere")


def replace_path(_: Path) -> None:
    sys.path = ["/nowhere"]


def change_umask(_: Path) -> None:
    os.umask(0o777)


DISTURBANCES: list[Callable[[Path], None]] = [
    leave_another_folder, leave_a_deleted_folder, change_variables, clear_variables, change_signals,
    replace_streams, close_a_stream_of_its_own, change_arguments, replace_arguments, change_path, replace_path, change_umask,
]  # fmt: skip


def state_of_the_process() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    return {
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in process.KEPT_SIGNALS],
        "streams": [sys.stdin, sys.stdout, sys.stderr],
        "arguments": list(sys.argv),
        "path": list(sys.path),
        "umask": umask,
    }


@pytest.mark.parametrize("fails", [False, True], ids=["", "and fails"])
@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda function: function.__name__)
def test_what_a_step_does_to_its_process_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Callable[[Path], None], fails: bool
) -> None:
    # Given a process, with its parts under pytest's eyes so that a failure here harms no other test
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    streams = sys.stdin, sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in process.KEPT_SIGNALS}
    path, arguments = sys.path, sys.argv
    before = state_of_the_process()
    try:
        # When a step leaves it in a mess
        with pytest.raises(RuntimeError) if fails else undisturbed():
            if fails:
                with undisturbed():
                    disturb(tmp_path)
                    raise RuntimeError
            disturb(tmp_path)
        # Then the next one finds it as it was
        assert state_of_the_process() == before
    finally:
        sys.stdin, sys.stdout, sys.stderr, sys.path, sys.argv = *streams, path, arguments
        for number, kept in handlers.items():
            signal.signal(number, kept)
        os.umask(before["umask"])


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`signal.getsignal` says None for a handler that C code installed: it can't be put back."""
    installed: list[Any] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *call: installed.append(call))

    with undisturbed():
        pass

    assert installed == []


def test_a_folder_that_is_gone_when_the_step_ends_is_no_failure_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's own folder removed under it: the step did its work, and there is nothing to go back to."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "removed"
    folder.mkdir()
    os.chdir(folder)

    with undisturbed():
        os.chdir(tmp_path)
        folder.rmdir()


def test_a_process_whose_folder_is_gone_executes_steps_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "removed"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    executed = []

    with undisturbed():
        executed.append("a step")

    assert executed == ["a step"]


def test_no_event_loop_of_a_step_is_left(instance: DagsterInstance) -> None:
    """Each open loop costs three file descriptors: a worker's process would be out of them after 300 steps."""
    from tests.unit.runs_by_hand import execute, message

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
