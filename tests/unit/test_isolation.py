"""What a step does to its process, and what the next one finds of it: nothing."""

import builtins
import copyreg
import importlib
import json
import logging
import os
import pkgutil
import random
import resource
import signal
import sys
import time
import timeit
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dagster_stack.pool import replacement
from dagster_stack.pool.isolation import signals
from dagster_stack.pool.isolation import undisturbed as undisturbed_module
from dagster_stack.pool.isolation.registry import KEPT, Kept
from dagster_stack.pool.isolation.undisturbed import undisturbed
from tests.unit import disturbances
from tests.unit.disturbances import DISTURBANCES, child

for found in pkgutil.iter_modules(disturbances.__path__):
    importlib.import_module(f"{disturbances.__name__}.{found.name}")

#: As user code sees it, which does not ask for types.
any_undisturbed: Any = undisturbed_module


@pytest.fixture(autouse=True)
def _not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undisturbed_module, "replace_process", lambda: None)


@pytest.fixture
def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its parts are under pytest's eyes, so that a failure here harms no other test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("REMOVED", "1")
    with undisturbed():
        yield


@pytest.mark.usefixtures("_process")
@pytest.mark.parametrize("fails", [False, True], ids=["", "and fails"])
@pytest.mark.parametrize(
    ("name", "disturb", "see"), DISTURBANCES, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_a_step_does_to_its_process_is_undone(
    tmp_path: Path, name: str, disturb: Callable[[Path], None], see: Callable[[], Any], fails: bool
) -> None:
    before, told = see(), list[str]()

    # When a step leaves its process in a mess
    def step() -> None:
        disturb(tmp_path)
        if fails:
            raise RuntimeError

    with suppress(RuntimeError), undisturbed(told.append):
        step()

    # Then the next one finds it as it was
    assert see() == before
    assert told == []


def test_every_entry_of_the_list_is_tested() -> None:
    others = {"random numbers", "open files", "session and user"}
    assert {name for name, _, _ in DISTURBANCES} == {each.name for each in KEPT} - others


def test_a_step_that_seeds_does_not_make_the_next_one_repeat_itself() -> None:
    import numpy as np

    drawn = []
    for _ in range(2):
        with undisturbed():
            first = random.random(), np.random.random()
            random.seed(1)
            np.random.seed(1)
        drawn.append((random.random(), np.random.random()))
        with undisturbed():
            assert (random.random(), np.random.random()) != first

    assert drawn[0] != drawn[1]


def test_an_alarm_of_a_step_that_goes_off_late_does_not_interrupt_what_is_put_back() -> None:
    def late(*_: Any) -> None:
        raise TimeoutError

    told: list[str] = []
    handler = signal.getsignal(signal.SIGALRM)
    for delay in (0.00001, 0.0001, 0.0002, 0.0004):
        with suppress(TimeoutError), undisturbed(told.append):
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, delay)
    time.sleep(0.01)

    assert told == []
    assert signal.getsignal(signal.SIGALRM) is handler


def test_an_alarm_that_goes_off_between_two_of_them_does_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    restored = undisturbed_module._not_restored
    due = [3]

    def interrupted(kept: Kept, state: Any) -> str | None:
        due[0] -= 1
        if not due[0]:
            raise TimeoutError
        return restored(kept, state)

    monkeypatch.setattr(undisturbed_module, "_not_restored", interrupted)
    folder = Path.cwd()
    told: list[str] = []
    with undisturbed(told.append):
        os.chdir("/")

    assert told == []
    assert Path.cwd() == folder


@pytest.fixture
def loaded_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Loads a module of this text, as a step does that is the first to need it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(text: str) -> None:
        (tmp_path / "module_of_a_step.py").write_text(text)
        importlib.invalidate_caches()
        importlib.import_module("module_of_a_step")

    with undisturbed():
        yield load
        sys.modules.pop("module_of_a_step", None)


def test_what_a_module_sets_up_when_a_step_loads_it_stays(loaded_module: Callable[[str], None]) -> None:
    """It does so once: the next step would not have it."""
    told: list[str] = []

    with undisturbed(told.append):
        loaded_module(
            "import builtins, copyreg, logging, sys\n"
            "logging.getLogger(__name__).setLevel(7)\n"
            "class Finder:\n    @staticmethod\n    def find_spec(*_): ...\n"
            "sys.meta_path.append(Finder())\n"
            "def helper(): ...\n"
            "builtins.helper_of_a_step = helper\n"
            "copyreg.pickle(Finder, str)\n"
        )

    module: Any = sys.modules["module_of_a_step"]
    assert told == []
    assert logging.getLogger("module_of_a_step").level == 7
    assert any(isinstance(each, module.Finder) for each in sys.meta_path)
    assert hasattr(builtins, "helper_of_a_step")
    assert module.Finder in copyreg.dispatch_table


def test_a_part_of_the_standard_library_that_a_step_loads_is_there_for_the_next_one() -> None:
    sys.modules.pop("json.tool", None)
    vars(json).pop("tool", None)

    with undisturbed():
        importlib.import_module("json.tool")

    assert hasattr(json, "tool")


def test_paths_that_a_step_adds_go_also_when_it_loads_a_module(loaded_module: Callable[[str], None]) -> None:
    before = list(sys.path)

    with undisturbed():
        sys.path.insert(0, "/nowhere")
        loaded_module("")

    assert sys.path == before


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`signal.getsignal` says None for a handler that C code installed: it can't be put back."""
    installed: list[Any] = []
    monkeypatch.setattr(signals, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *call: installed.append(call))

    with undisturbed():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    assert installed == []


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


@pytest.mark.parametrize("stream", ["sys.stdout.buffer", "sys.stdout.detach()"])
def test_a_stream_around_that_of_the_process_does_not_close_it(stream: str) -> None:
    """As many a script begins, to print UTF-8."""
    program = (
        "import io, os, sys\n"
        "from dagster_stack.pool.isolation import streams\n"
        "saved = streams.streams()\n"
        f"sys.stdout = io.TextIOWrapper({stream}, encoding='utf-8')\n"
        "print('the step')\n"
        "streams.restore_streams(saved)\n"
        "print('the next', sys.__stdout__.closed, flush=True)\n"
        "os.write(1, b'in C')\n"
    )

    assert child(program) == "the step\nthe next False\nin C"


# --- what can't be put back ---------------------------------------------------------------------------------------


def lower_a_hard_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def begin_a_session() -> None:
    os.setsid()


def be_nicer() -> None:
    os.nice(5)


def close_all_descriptors() -> None:
    os.closerange(3, 100)


def open_many_files() -> None:
    for _ in range(150):
        os.open("/", os.O_RDONLY)


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (lower_a_hard_limit, "resource limits"),
        (begin_a_session, "session"),
        (be_nicer, "priority"),
        (close_all_descriptors, "descriptors"),
        (open_many_files, "open files"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_process_that_can_not_be_put_back_is_replaced(disturb: Callable[[], None], reason: str) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    kept = 180
    os.dup2(writing, kept)
    child = os.fork()
    if child == 0:
        # Somebody else than root, whom nothing of that is forgiven.
        os.setgroups([])
        os.setresgid(12345, 12345, 12345)
        os.setresuid(12345, 12345, 12345)
        resource.setrlimit(resource.RLIMIT_NOFILE, (250, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        told: list[str] = []
        replaced: list[bool] = []
        any_undisturbed.replace_process = lambda: replaced.append(True)
        with undisturbed(told.append):
            disturb()
        os.write(kept, f"{told} {replaced}".encode())
        os._exit(0)
    os.close(writing)
    os.close(kept)
    os.waitpid(child, 0)
    said = os.read(reading, 10_000).decode()
    os.close(reading)

    assert "changed what can't be put back" in said
    assert reason in said
    assert said.endswith("[True]")


# --- a process that goes ---------------------------------------------------------------------------------------


def test_a_process_leaves_after_its_task_when_it_is_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """By billiard's own way of recycling, which acknowledges the task first and counts no loss."""
    from billiard.pool import EX_RECYCLE

    monkeypatch.setattr(replacement._Process, "is_to_be_replaced", False)
    worker = object.__new__(replacement.ReplaceableWorker)
    worker.wait_for_job = lambda: "a job"
    worker.outq = types.SimpleNamespace(put=lambda _: None)
    worker.on_loop_start(1)

    assert worker.wait_for_job() == "a job"
    replacement.replace_process()
    with pytest.raises(SystemExit) as end:
        worker.wait_for_job()
    assert end.value.code == EX_RECYCLE


# --- the cost -----------------------------------------------------------------------------------------------------


def test_all_of_it_costs_less_than_two_milliseconds_of_processor(capsys: pytest.CaptureFixture[str]) -> None:
    """Measured 0.5 ms on 2 cores: loggers 75 µs, functions 35, modules 30, streams 20, limits 18, attributes 15."""

    def step() -> None:
        with undisturbed():
            pass

    def cost(act: Callable[[], Any]) -> float:
        return 1e6 * min(timeit.repeat(act, number=10, repeat=20, timer=time.thread_time)) / 10

    def use(each: Kept) -> Callable[[], None]:
        return lambda: each.restore(each.save())

    costs = {each.name: cost(use(each)) for each in KEPT}
    whole = cost(step)

    with capsys.disabled():
        print("\nµs:", ", ".join(f"{name} {cost:.0f}" for name, cost in costs.items()), f"; all {whole:.0f}")
    assert whole < 2000
