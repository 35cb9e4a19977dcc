"""Processes that a step has started: all of them are gone after it, and the next step may start its own."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import psutil
import pytest

from dagster_stack.step import descendants, shared_memory
from dagster_stack.step.descendants import Descendants, adopt_orphans, end_orphans, own_child
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    # Processes are left running here on purpose.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: A process that only SIGKILL ends, in a session of its own, whose parent is gone; it says its id.
STUBBORN = """
import os, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _subreaper() -> Iterator[None]:
    adopt_orphans()
    yield
    ctypes.CDLL(None).prctl(descendants.SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def stubborn() -> int:
    started = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert started.stdout
    process = int(started.stdout.readline())
    started.wait()
    return process


def square(number: int) -> int:
    return number * number


def use(method: str) -> None:
    """What a step does with multiprocessing, which it leaves as it is."""
    context = multiprocessing.get_context(method)
    pool = context.Pool(2)
    assert pool.map(square, range(4)) == [0, 1, 4, 9]
    executor = ProcessPoolExecutor(2, mp_context=context)
    assert list(executor.map(square, range(3))) == [0, 1, 4]
    manager = context.Manager()
    assert list(manager.list([1])) == [1]
    LEFT.extend([pool, executor, manager])


LEFT: list[Any] = []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_multiprocessing_has_left_ends_with_the_step_and_the_next_one_may_use_it(method: str) -> None:
    for _ in range(2):
        before = set(psutil.Process().children())
        with Descendants():
            use(method)
        assert set(psutil.Process().children()) <= before
    LEFT.clear()


def test_a_process_that_has_got_away_and_ignores_signals_is_killed_and_told() -> None:
    with Descendants() as started:
        process = stubborn()

    assert not psutil.pid_exists(process)
    assert [text.partition(" ")[0] for text in started.told] == [str(process)]


def test_a_long_command_is_told_in_one_line_with_its_begin_and_its_end() -> None:
    with Descendants() as started:
        subprocess.Popen([sys.executable, "-c", f"import time\n{'#' * 200}\ntime.sleep(600)", "the-end"])

    (told,) = started.told
    assert "import time ##" in told
    assert told.endswith("the-end)")
    assert "\n" not in told


def test_what_ends_when_it_is_asked_is_not_killed(tmp_path: Path) -> None:
    code = (
        "import signal,sys,time,pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'end')!r}).touch(), sys.exit()))\n"
        "print(1, flush=True)\ntime.sleep(600)"
    )
    with Descendants():
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()

    assert (tmp_path / "end").exists()


def test_what_was_there_before_stays() -> None:
    """User code may start a helper when it is loaded, for all steps."""
    helper = subprocess.Popen(["sleep", "600"])
    try:
        with Descendants() as started:
            child = subprocess.Popen(["sleep", "600"])
        assert helper.poll() is None
        assert child.poll() is not None
        assert len(started.told) == 1
    finally:
        helper.kill()
        helper.wait()


def test_a_fork_server_of_user_code_stays_and_a_steps_processes_are_of_its_own() -> None:
    """Those of one that runs before the step would be nobody's: their parent stays."""
    context = multiprocessing.get_context("forkserver")
    helper: Any = forkserver._forkserver
    # Given one that was started when the code was loaded
    with context.Pool(1) as before:
        assert before.map(square, [2]) == [4]
        server = helper._forkserver_pid
        children = set(psutil.Process(server).children())
        try:
            # When a step leaves processes
            with Descendants():
                use("forkserver")
                assert set(psutil.Process(server).children()) == children
            # Then they are gone, and what was there is there and of use
            assert before.map(square, [3]) == [9]
            assert helper._forkserver_pid == server
        finally:
            LEFT.clear()
    helper._stop()


def test_what_has_not_begun_ends_nothing() -> None:
    """A step that can't be loaded fails before it begins; its process may have children of its own."""
    with subprocess.Popen(["sleep", "600"]) as own:
        started = Descendants()

        started.end()
        started.kill()

        assert own.poll() is None
        own.kill()


def test_a_zombie_is_reaped_and_not_told() -> None:
    with Descendants() as started:
        child = os.fork()
        if not child:
            os._exit(0)
        wait_until(lambda: psutil.Process(child).status() == psutil.STATUS_ZOMBIE, 10, "a zombie")

    assert not psutil.pid_exists(child)
    assert started.told == []


def test_what_is_about_to_be_gone_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a helper of a program that has ended, as dbt has one: it ends by itself, and for a moment it has no command any more
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: [])

    told = descendants.end(lambda: [psutil.Process(process.pid)] if process.poll() is None else [], 0.1)

    assert told == []
    assert process.wait(5) == -signal.SIGTERM


def test_shared_memory_of_an_ended_process_is_removed_by_its_tracker() -> None:
    with Descendants():
        left = SharedMemory(create=True, size=100)
        assert Path("/dev/shm", left.name).exists()

    assert not Path("/dev/shm", left.name).exists()
    left.close()


def test_a_tracker_that_user_code_started_when_it_was_loaded_keeps_nothing_of_a_step() -> None:
    loaded = SharedMemory(create=True, size=100)
    tracker: Any = resource_tracker._resource_tracker
    own = tracker._pid
    try:
        for _ in range(2):
            with Descendants():
                left = SharedMemory(create=True, size=100)

            assert not Path("/dev/shm", left.name).exists()
            left.close()
        assert Path("/dev/shm", loaded.name).exists()
        assert tracker._pid == own
        assert psutil.pid_exists(own)
    finally:
        loaded.close()
        loaded.unlink()


def test_shared_memory_that_no_tracker_knows_is_removed_where_one_step_has_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_memory, "_worker", shared_memory.Worker())
    monkeypatch.setenv(shared_memory.VARIABLE, "1g")
    (tmp_path / "before").touch()
    shared_memory.remember_worker(concurrency=1)

    with shared_memory.cleared():
        (tmp_path / "torch_1_2").touch()

    assert shared_memory.names() == {"before"}
    # And what a lost process has left
    (tmp_path / "torch_3_4").touch()
    shared_memory.clear_worker()
    assert shared_memory.names() == {"before"}


@pytest.mark.parametrize(("concurrency", "size"), [(2, "1g"), (1, "")])
def test_shared_memory_that_may_be_somebody_elses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int, size: str
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_memory, "_worker", shared_memory.Worker())
    monkeypatch.setenv(shared_memory.VARIABLE, size)
    shared_memory.remember_worker(concurrency)

    with shared_memory.cleared():
        (tmp_path / "torch_1_2").touch()
    shared_memory.clear_worker()

    assert shared_memory.names() == {"torch_1_2"}


def test_a_handler_of_a_childs_end_hears_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's raises an error when a process of a data loader is killed."""
    heard: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
    try:
        with Descendants():
            subprocess.Popen(["sleep", "600"])
        assert heard == []
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_orphans_of_a_pools_process_are_ended_and_nobody_else() -> None:
    # Given a worker's main process, with one of its pool, a helper of its own, and what a lost process has left
    others = [each.pid for each in psutil.Process().children()]
    pool = subprocess.Popen(["sleep", "600"])
    with own_child(lambda: subprocess.Popen(["sleep", "600"])) as helper:
        orphan = stubborn()
        # When it sees the loss
        told = end_orphans([pool.pid, *others])
        # Then that is gone, and the others are there
        assert [text.partition(" ")[0] for text in told] == [str(orphan)]
        assert not psutil.pid_exists(orphan)
        assert pool.poll() is helper.poll() is None
        helper.kill()
        helper.wait()
    pool.kill()
    pool.wait()


def test_a_step_without_children_costs_some_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def waitid(*_: int) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", waitid)
    began = time.perf_counter()
    for _ in range(1000):
        with Descendants():
            pass
    assert time.perf_counter() - began < 0.1
