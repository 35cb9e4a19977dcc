"""Several code locations: each has a process of its own behind a process of the pool, and none sees another's code."""

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import psutil
import pytest
from celery import Celery, _state
from celery.exceptions import Reject, SoftTimeLimitExceeded
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.origin import JobPythonOrigin

from dagster_stack import project
from dagster_stack.messaging.task_names import STEP_TASK
from dagster_stack.pool import delivery, location_process
from dagster_stack.project import locations
from dagster_stack.tasks import register_tasks
from tests.unit.deaths import Died, deaths
from tests.unit.deliveries import memory_app
from tests.unit.runs_by_hand import kinds, message, said
from tests.waiting import wait_until

#: Both have modules of the same names; the second is imported when the step runs.
JOBS = """
import os, signal, sys, time
from dagster import Definitions, in_process_executor, job, op
import helpers

@op(config_schema={"how": str})
def tell(context):
    import later
    how = context.op_config["how"]
    os.environ["LEFT_BY"] = helpers.NAME
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "with a thread":
        import threading
        threading.Thread(target=time.sleep, args=(60,), name="left").start()
    if how == "for ever":
        time.sleep(60)
    context.add_output_metadata({
        "helpers": helpers.NAME,
        "later": later.NAME,
        "pid": os.getpid(),
        "loaded": time.monotonic() if not hasattr(helpers, "loaded") else helpers.loaded,
        "path": ",".join(each for each in sys.path if each.startswith(os.getcwd())),
        "modules": ",".join(sorted(name for name in sys.modules if name.startswith("only_in_"))),
    })

@job
def told():
    tell()

defs = Definitions(jobs=[told])
"""
NAMES = ("first", "second")
MOST_BYTES = 1_500_000_000


class Worker:
    """The worker of this process."""

    app: Celery


@pytest.fixture
def two_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of two code locations, the working directory of this process's children; and a worker of it."""
    # Celery gives the tasks of one app to each later one of the process.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    Worker.app = memory_app(tmp_path)
    Worker.app.conf.worker_max_memory_per_child = MOST_BYTES // 1024
    register_tasks(Worker.app)
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "jobs.py").write_text(f"import only_in_{name}\n{JOBS}")
        for module in ("helpers", "later", f"only_in_{name}"):
            (tmp_path / name / f"{module}.py").write_text(f"NAME = {name!r}\n")
    entries = [
        f"{{python_module: {{module_name: jobs, working_directory: {name}, location_name: {name}}}}}"
        for name in NAMES
    ]
    (tmp_path / "workspace.yaml").write_text(f"load_from: [{', '.join(entries)}]")
    monkeypatch.setenv(project.VARIABLE, str(tmp_path))
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://localhost")
    monkeypatch.chdir(tmp_path)
    project.found.cache_clear()
    locations.several.cache_clear()
    yield tmp_path
    if kept := location_process._Process.locations:
        for location in list(kept._kept):
            kept._end(location)
    location_process._Process.locations = None
    project.found.cache_clear()
    locations.several.cache_clear()


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return deaths(monkeypatch, location_process)


def begun(
    instance: DagsterInstance, folder: Path, name: str, how: str = "well"
) -> tuple[DagsterRun, dict[str, Any]]:
    """A run of one location's job, and the message of its step. Loads the code here, and forgets it."""
    sys.path.insert(0, str(folder / name))
    importlib.invalidate_caches()
    try:
        pointer = importlib.import_module("dagster._core.code_pointer").ModuleCodePointer(
            "jobs", "defs", str(folder / name)
        )
        origin = ReconstructableRepository(pointer).get_python_origin()
        definition = importlib.import_module("jobs").defs.resolve_job_def("told")
        run = instance.create_run_for_job(
            definition,
            run_config={"ops": {"tell": {"config": {"how": how}}}},
            status=DagsterRunStatus.STARTED,
            job_code_origin=JobPythonOrigin(job_name="told", repository_origin=origin),
        )
        step = message(instance, run, "tell")
    finally:
        sys.path.remove(str(folder / name))
        for module in [*sys.modules]:
            if module in ("jobs", "helpers", "later") or module.startswith("only_in_"):
                del sys.modules[module]
    return run, {**step.to_json(), "location": name}


def execute(step: dict[str, Any], name: str = STEP_TASK, **request: Any) -> Any:
    """Do a task as a process of the pool does."""
    task = Worker.app.tasks[name]
    task.push_request(
        id=f"{name}-1", hostname="worker@here", delivery_info={"routing_key": "dagster"}, **request
    )
    try:
        return task.run(message=step)
    finally:
        task.pop_request()


def told(instance: DagsterInstance, run: DagsterRun) -> dict[str, Any]:
    """What the step has seen."""
    (found,) = (
        entry.dagster_event
        for entry in instance.all_logs(run.run_id)
        if entry.dagster_event and entry.dagster_event.is_successful_output
    )
    return {key: value.value for key, value in found.step_output_data.metadata.items()}


def kept() -> dict[str, int]:
    processes = location_process._Process.locations
    return {name: child.pid for name, child in processes._kept.items()} if processes else {}


def test_no_module_path_or_variable_of_one_location_meets_another(
    instance: DagsterInstance, two_locations: Path
) -> None:
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for name in [*NAMES, *NAMES]:
        run, step = begun(instance, two_locations, name)
        execute(step)
        seen[name].append(told(instance, run))
        # Its holder bears the name of the pool's process, which its worker knows
        holder = f"worker@here (process {os.getpid()})"
        assert f'Executing step "tell" on {holder}.' in said(instance, run.run_id)

    for name, found in seen.items():
        for each in found:
            assert (each["helpers"], each["later"]) == (name, name)
            assert each["modules"] == f"only_in_{name}"
            # Its own folder, and the project's root
            assert set(each["path"].split(",")) == {str(two_locations / name), str(two_locations)}
        # Each stays warm
        assert len({each["pid"] for each in found}) == 1
    assert len({os.getpid(), *kept().values()}) == 3
    assert "jobs" not in sys.modules
    assert "LEFT_BY" not in os.environ


def test_the_location_of_a_run_is_that_of_its_messages(
    instance: DagsterInstance, two_locations: Path
) -> None:
    by_hand, step = begun(instance, two_locations, "first")
    of_other, _ = begun(instance, two_locations, "second")

    # Code in no location, as of a script, is in none of the others' processes
    assert locations.location_of(by_hand).startswith("code ")
    assert locations.location_of(by_hand) != locations.location_of(of_other)
    assert locations.location_of_message([[], {"message": step}]) == "first"
    assert locations.location_of_message([[], {"message": {"run_id": "x"}}]) == ""


def test_what_its_process_dies_of_the_pools_dies_of(
    instance: DagsterInstance, two_locations: Path, died: list[int]
) -> None:
    run, step = begun(instance, two_locations, "first", "killed")

    with pytest.raises(Died):
        execute(step)

    assert died == [-signal.SIGKILL]
    assert "STEP_START" in kinds(instance, run.run_id, "tell")


def test_one_that_died_before_it_got_anything_is_replaced(
    instance: DagsterInstance, two_locations: Path, died: list[int]
) -> None:
    _, step = begun(instance, two_locations, "first")
    execute(step)
    psutil.Process(kept()["first"]).kill()

    run, step = begun(instance, two_locations, "first")
    execute(step)

    assert told(instance, run)["helpers"] == "first"
    assert died == []


def test_one_whose_code_ends_it_while_it_is_loaded_ends_the_pools_so_that_it_counts(
    instance: DagsterInstance, two_locations: Path, died: list[int]
) -> None:
    _, step = begun(instance, two_locations, "first")
    (two_locations / "first" / "jobs.py").write_text("import os\nos._exit(7)\n")

    with pytest.raises(Died):
        execute(step)

    assert died == [7]


def test_one_with_what_can_not_be_put_back_is_replaced(
    instance: DagsterInstance, two_locations: Path
) -> None:
    _, step = begun(instance, two_locations, "first", "with a thread")
    execute(step)
    assert kept() == {}

    run, step = begun(instance, two_locations, "first")
    execute(step)

    assert told(instance, run)["helpers"] == "first"


def test_together_they_have_no_more_memory_than_a_process_of_the_pool(
    instance: DagsterInstance, two_locations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the location that was used last stays, if it is not too large by itself."""
    sizes = {"first": 0.7, "second": 0.7}

    def has_more(pids: list[int], most_bytes: int) -> bool:
        found = {child: name for name, child in kept().items()}
        return sum(sizes[found[pid]] for pid in pids) * MOST_BYTES > most_bytes

    monkeypatch.setattr(location_process, "has_more", has_more)
    for name in NAMES:
        execute(begun(instance, two_locations, name)[1])
    assert [*kept()] == ["second"]

    sizes["second"] = 1.1
    execute(begun(instance, two_locations, "second")[1])
    assert kept() == {}


def test_what_processes_share_is_nobodys_own() -> None:
    own = psutil.Process().memory_full_info()
    child = os.fork()
    if not child:
        signal.pause()
    try:
        assert location_process.has_more([child], 100_000)
        assert not location_process.has_more([child], own.uss // 2)
        # One that is gone has none
        assert not location_process.has_more([2**22 + 1], 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_interrupt_of_the_pools_process_reaches_the_step(
    instance: DagsterInstance, two_locations: Path
) -> None:
    run, step = begun(instance, two_locations, "first", "for ever")

    def interrupt() -> None:
        wait_until(lambda: "STEP_START" in kinds(instance, run.run_id, "tell"), 60, "the step's start")
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    execute(step)
    thread.join()

    assert "STEP_FAILURE" in kinds(instance, run.run_id, "tell")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_message_that_comes_again_after_a_pause_is_executed_too(
    instance: DagsterInstance, two_locations: Path
) -> None:
    """RabbitMQ says in a header when it was put aside, as a time."""
    run, step = begun(instance, two_locations, "first")

    execute(step, headers={"x-death": [{"time": datetime.now(UTC), "count": 1}]}, timelimit=[None, None])

    assert told(instance, run)["helpers"] == "first"


def test_a_message_goes_back_to_its_queue_while_no_process_can_be_forked(
    instance: DagsterInstance, two_locations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> NoReturn:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    _, step = begun(instance, two_locations, "first")
    monkeypatch.setattr(os, "fork", refused)
    monkeypatch.setattr(delivery, "AWAY_PAUSE_SECS", 0)

    with pytest.raises(Reject) as rejected:
        execute(step)

    assert rejected.value.requeue
    assert kept() == {}


def test_an_error_in_the_middle_ends_the_step_as_nobody_would_hear_its_end(
    instance: DagsterInstance, two_locations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Celery's soft time limit raises one, for tasks of dagster-celery."""
    run, step = begun(instance, two_locations, "first", "for ever")

    def late(*_: Any) -> NoReturn:
        raise SoftTimeLimitExceeded

    def pass_limit() -> None:
        wait_until(lambda: "STEP_START" in kinds(instance, run.run_id, "tell"), 60, "the step's start")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, late)
    thread = Thread(target=pass_limit)
    thread.start()
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            execute(step)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)

    assert kept() == {}


def test_what_a_task_rejects_is_rejected_and_its_error_is_an_error(two_locations: Path) -> None:
    @Worker.app.task(name="tests.reject", shared=False)
    def reject() -> None:
        raise Reject("not now", requeue=True)

    request = {"id": "1", "hostname": "worker@here"}
    outcome = location_process.outcome_of(Worker.app, "tests.reject", [], {}, request)
    assert (outcome.rejected, outcome.is_requeued, outcome.error) == ("not now", True, None)


def test_one_ends_with_the_pools_process(instance: DagsterInstance, two_locations: Path) -> None:
    run, step = begun(instance, two_locations, "first", "for ever")
    pool = os.fork()
    if pool == 0:
        try:
            execute(step)
        finally:
            os._exit(99)
    wait_until(lambda: "STEP_START" in kinds(instance, run.run_id, "tell"), 60, "the step's start")
    (own,) = psutil.Process(pool).children()

    os.kill(pool, signal.SIGKILL)
    os.waitpid(pool, 0)

    own.wait(10)
