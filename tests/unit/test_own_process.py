"""A step in a process of its own: whatever it ends of, it is as with a step in a process that was there before."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
from dagster import DagsterInstance, DagsterRun

from dagster_stack import tags
from dagster_stack.pool import child, own_process
from dagster_stack.step import shared_memory
from dagster_stack.step.step_execution import StepExecution
from dagster_stack.store.event_log import PooledEventLogStorage
from tests.unit import own_process_jobs as jobs
from tests.unit.deaths import Died, deaths
from tests.unit.runs_by_hand import events, execute, kinds, message, said, started_run
from tests.waiting import wait_until


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return deaths(monkeypatch, own_process)


def begun(instance: DagsterInstance, how: str, **run_tags: str) -> DagsterRun:
    run = started_run(instance, jobs.apart, {"ops": {"end": {"config": {"how": how}}}})
    instance.add_run_tags(run.run_id, run_tags)
    return run


def output(instance: DagsterInstance, run: DagsterRun, key: str) -> dict[str, Any]:
    (found,) = (
        event
        for event in events(instance, run.run_id)
        if event.is_successful_output and event.step_key == key
    )
    return {name: entry.value for name, entry in found.step_output_data.metadata.items()}


def pid_of(instance: DagsterInstance, run: DagsterRun, key: str) -> int:
    (found,) = (
        event for event in events(instance, run.run_id)
        if event.event_type_value == "STEP_WORKER_STARTED" and event.step_key == key
    )  # fmt: skip
    return int(str(found.engine_event_data.metadata["pid"].value))


def test_each_step_finds_a_fresh_process_which_ends_with_it(instance: DagsterInstance) -> None:
    found = []
    for _ in range(2):
        run = begun(instance, "well")
        woken = execute(message(instance, run, "end"), holder="worker@here (process 1)")
        assert set(woken) == {"woken"}
        found.append(output(instance, run, "end"))
        # Its events are those of a step, and say who holds it
        told = [kind for kind in kinds(instance, run.run_id, "end") if kind.startswith("STEP_")]
        assert told == ["STEP_WORKER_STARTED", "STEP_START", "STEP_OUTPUT", "STEP_SUCCESS"]
        assert 'Executing step "end" on worker@here (process 1).' in said(instance, run.run_id)
        # And the lease is given back
        storage = instance.event_log_storage
        assert isinstance(storage, PooledEventLogStorage)
        assert storage.leases.active([run.run_id]) == set()

    assert [each["state"] for each in found] == ["fresh", "fresh"]
    pids = {os.getpid(), *(each["pid"] for each in found)}
    assert len(pids) == 3
    for pid in pids - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_it_is_so_in_the_embedded_mode(instance: DagsterInstance) -> None:
    run = begun(instance, "well")

    execute(message(instance, run, "end"))

    assert "STEP_SUCCESS" in kinds(instance, run.run_id, "end")
    assert pid_of(instance, run, "end") != os.getpid()


def test_a_run_or_job_can_ask_for_it_and_an_ops_own_tag_wins(instance: DagsterInstance) -> None:
    run = started_run(instance, jobs.all_apart)

    for key in ("plain", "warm"):
        execute(message(instance, run, key))

    assert pid_of(instance, run, "plain") != os.getpid()
    assert pid_of(instance, run, "warm") == os.getpid()


@pytest.mark.parametrize(
    ("step", "run", "expected"),
    [
        ({}, {}, "warm"),
        ({tags.ISOLATION: "process"}, {}, "process"),
        ({}, {tags.ISOLATION: " Process "}, "process"),
        ({tags.ISOLATION: "warm"}, {tags.ISOLATION: "process"}, "warm"),
        ({tags.ISOLATION: "container"}, {}, "warm"),
    ],
)
def test_what_the_tag_says(step: dict[str, str], run: dict[str, str], expected: str) -> None:
    assert tags.isolation(step, run) == expected


@pytest.mark.parametrize("how", ["by an error", "by exit"])
def test_an_error_is_the_steps_failure(instance: DagsterInstance, died: list[int], how: str) -> None:
    run = begun(instance, how)

    execute(message(instance, run, "end"))

    assert "STEP_FAILURE" in kinds(instance, run.run_id, "end")
    assert died == []


@pytest.mark.parametrize(("how", "code"), [("by a signal", -9), ("by a code", 7)])
def test_what_it_dies_of_its_parent_dies_of(
    instance: DagsterInstance, died: list[int], how: str, code: int
) -> None:
    """So that its worker tells of the loss, and the step is executed again, as without a process of its own."""
    run = begun(instance, how)

    with pytest.raises(Died):
        execute(message(instance, run, "end"))

    assert died == [code]
    assert "STEP_START" in kinds(instance, run.run_id, "end")


@pytest.mark.parametrize(
    "code", [0, 7, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM, -(signal.SIGRTMAX - 1)]
)
def test_a_process_dies_likewise(code: int) -> None:
    forked = os.fork()
    if forked == 0:
        child.die_likewise(code)

    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == code


def test_a_step_that_closes_all_descriptors_is_no_riddle(instance: DagsterInstance, died: list[int]) -> None:
    run = begun(instance, "with all closed")

    with pytest.raises(Died):
        execute(message(instance, run, "end"))

    assert len(died) == 1


def test_what_it_leaves_in_shared_memory_goes_with_it(
    instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know what was there before; its holder does."""
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_memory, "_worker", shared_memory.Worker(frozenset()))
    run = begun(instance, "with a file", **{"test/file": str(tmp_path / "torch_1_2")})

    execute(message(instance, run, "end"))

    assert "STEP_SUCCESS" in kinds(instance, run.run_id, "end")
    assert shared_memory.names() == frozenset()


def test_an_interrupt_is_forwarded_and_ends_it(
    instance: DagsterInstance, tmp_path: Path, died: list[int]
) -> None:
    # Given a step that works on
    file = tmp_path / "pid"
    run = begun(instance, "by no end", **{"test/file": str(file)})

    def interrupt() -> None:
        wait_until(lambda: file.exists() and file.read_text(), 60, "the step")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)

    # When its holder is interrupted, as `terminate` does
    execution = StepExecution(message(instance, run, "end"), "worker@here", lambda: None)
    execution.run()

    # Then it ends, with its failure in the log, and its holder goes on
    thread.join()
    assert "STEP_FAILURE" in kinds(instance, run.run_id, "end")
    assert execution.was_interrupted
    assert died == []
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_comes_before_it_can_notice_one_is_not_lost(
    instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: list[int]
) -> None:
    # Given an interrupt while the process is started, and a step that would work on
    run = begun(instance, "by no end", **{"test/file": str(tmp_path / "pid")})
    start = subprocess.Popen

    def interrupted(command: list[str], **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted)

    # When it is executed
    execution = StepExecution(message(instance, run, "end"), "worker@here", lambda: None)
    execution.run()

    # Then it ends by that
    assert execution.was_interrupted
    assert "STEP_SUCCESS" not in kinds(instance, run.run_id, "end")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_that_can_not_be_started_is_the_steps_failure_and_its_holder_as_before(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    run, before = begun(instance, "well"), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(subprocess, "Popen", refused)

    assert execute(message(instance, run, "end")) == ["woken"]

    (failed,) = (event for event in events(instance, run.run_id) if event.is_step_failure)
    assert failed.step_failure_data.error
    assert "Resource temporarily unavailable" in failed.step_failure_data.error.to_string()
    assert signal.getsignal(signal.SIGINT) is before


def test_it_ends_with_its_parent(instance: DagsterInstance, tmp_path: Path) -> None:
    """Whatever that dies of, a kill above all."""
    file = tmp_path / "pid"
    run = begun(instance, "by no end", **{"test/file": str(file)})
    step = message(instance, run, "end")
    parent = os.fork()
    if parent == 0:
        # Connections are its own: warm ones are forgotten by a fork.
        try:
            execute(step)
        finally:
            os._exit(99)
    pid = int(wait_until(lambda: file.exists() and file.read_text(), 60, "the step"))

    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    wait_until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z (" in Path(f"/proc/{pid}/status").read_text(),
        5,
        "its end",
    )
