"""What a step does to its process, and what the next one finds of it: nothing."""

import asyncio
import builtins
import csv
import ctypes
import datetime
import decimal
import faulthandler
import gc
import io
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import timeit
import tracemalloc
import types
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dagster_stack.worker import isolation, leftovers, replacement
from dagster_stack.worker.isolation import KEPT, undisturbed

LIBC = ctypes.CDLL(None)
#: As user code sees them, which does not ask for types.
any_sys: Any = sys
any_isolation: Any = isolation
any_ssl: Any = ssl
any_threading: Any = threading
any_request: Any = urllib.request
any_logging: Any = logging
any_process: Any = multiprocessing.current_process()


@pytest.fixture(autouse=True)
def _not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "replace_process", lambda: None)


# --- each thing in the list ---------------------------------------------------------------------------------------
# What a step does, and how the next one sees it: by the name of the entry. `see` must give the same before and after.

Disturbance = tuple[str, Callable[[Path], Any], Callable[[], Any]]
DISTURBANCES: list[Disturbance] = []


def disturbance(
    name: str, see: Callable[[], Any]
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def add(disturb: Callable[[Path], Any]) -> Callable[[Path], Any]:
        DISTURBANCES.append((name, disturb, see))
        return disturb

    return add


def child(program: str) -> str:
    return subprocess.check_output([sys.executable, "-c", program], text=True).strip()


@disturbance("timers", lambda: [round(signal.getitimer(which)[0] / 300) for which in isolation.TIMERS])
def leave_an_alarm(_: Path) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(100)
    signal.setitimer(signal.ITIMER_VIRTUAL, 100, 5)


@disturbance("signals", lambda: [signal.getsignal(number) for number in isolation.SIGNALS])
def handle_every_signal(_: Path) -> None:
    for number in isolation.SIGNALS:
        if number not in (32, 33):
            signal.signal(number, lambda *_: None)


@disturbance("signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()))
def block_signals_that_come(_: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGUSR2)


@disturbance("wakeup descriptor", isolation._wakeup_descriptor)
def leave_a_wakeup_descriptor(_: Path) -> None:
    _reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)


@disturbance("trace", sys.gettrace)
def trace(_: Path) -> None:
    sys.settrace(lambda *_: None)


@disturbance("profile", sys.getprofile)
def profile(_: Path) -> None:
    sys.setprofile(lambda *_: None)


@disturbance("faulthandler", faulthandler.is_enabled)
def change_the_faulthandler(_: Path) -> None:
    (faulthandler.disable if faulthandler.is_enabled() else faulthandler.enable)()
    faulthandler.dump_traceback_later(0.3, exit=True)


@disturbance("environment", lambda: dict(os.environ))
def change_variables(_: Path) -> None:
    os.environ["LEFT_BY_A_STEP"] = "1"
    os.environ["KEPT"] = "changed"
    del os.environ["REMOVED"]


@disturbance("environment", lambda: dict(os.environ))
def clear_variables(_: Path) -> None:
    os.environ.clear()


@disturbance("environment", lambda: (os.environ, child("import os; print(sorted(os.environ.items()))")))
def change_variables_behind_pythons_back(_: Path) -> None:
    os.putenv("LEFT_BY_A_STEP", "1")
    os.unsetenv("REMOVED")
    os.environ = {}  # type: ignore[assignment] # noqa: B003


@disturbance("environment", lambda: child("import os; print(sorted(os.environ.items()))"))
def clear_variables_in_c(_: Path) -> None:
    LIBC.clearenv()


@disturbance(
    "time zone", lambda: (time.tzname, time.localtime(0)[:6], datetime.datetime.fromtimestamp(0).isoformat())
)
def change_the_time_zone(_: Path) -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


@disturbance("time zone", lambda: (time.tzname, time.localtime(0)[:6]))
def change_the_time_zone_of_c(_: Path) -> None:
    os.environ["TZ"] = "XYZ-7"
    time.mktime((2000, 1, 1, 0, 0, 0, 0, 0, 0))
    del os.environ["TZ"]


@disturbance("folder", os.getcwd)
def leave_another_folder(_: Path) -> None:
    os.chdir("/")


@disturbance("folder", os.getcwd)
def leave_a_deleted_folder(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


@disturbance("umask", isolation._umask)
def change_umask(_: Path) -> None:
    os.umask(0o777)


@disturbance("resource limits", lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
def lower_a_limit(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@disturbance("priority and processors", lambda: os.sched_getaffinity(0))
def use_one_processor(_: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@disturbance("process attributes", isolation._attributes)
def forbid_dumps(_: Path) -> None:
    LIBC.prctl(4, ctypes.c_ulong(0), 0, 0, 0)
    LIBC.prctl(29, ctypes.c_ulong(123456), 0, 0, 0)


@disturbance("streams", lambda: [sys.stdin, sys.stdout, sys.stderr, sys.__stdout__])
def replace_streams(_: Path) -> None:
    any_sys.stdin, any_sys.stdout, any_sys.stderr, any_sys.__stdout__ = (io.StringIO() for _ in range(4))
    sys.stdout.close()


@disturbance("streams", lambda: [isolation._file_of(descriptor) for descriptor in (0, 1, 2)])
def replace_descriptors(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.dup2(file, 1)
    os.close(2)
    os.close(0)


@disturbance(
    "paths and arguments",
    lambda: [(id(found := getattr(sys, name)), list(found)) for name in isolation.LISTS],
)
def change_paths(_: Path) -> None:
    sys.path.insert(0, "/nowhere")
    sys.argv = ["other"]
    sys.meta_path.clear()
    sys.path_hooks = []


@disturbance("modules", lambda: [sys.modules["json"], sys.modules["boto3"]])
def replace_modules(_: Path) -> None:
    import boto3  # noqa: F401

    sys.modules["json"] = types.ModuleType("json")
    del sys.modules["boto3"]


@disturbance(
    "functions and hooks", lambda: [time.time, time.sleep, builtins.open, socket.socket, datetime.datetime]
)
def replace_functions(_: Path) -> None:
    time.time = lambda: 0.0
    time.sleep = lambda _: None
    builtins.open = print  # type: ignore[assignment]
    socket.socket = object  # type: ignore[misc,assignment]
    datetime.datetime = object  # type: ignore[misc,assignment]


@disturbance(
    "functions and hooks",
    lambda: (hasattr(builtins, "_"), ssl._create_default_https_context, any_request._opener),
)
def do_without_certificates(_: Path) -> None:
    any_ssl._create_default_https_context = any_ssl._create_unverified_context
    urllib.request.install_opener(urllib.request.build_opener())
    builtins._ = str  # type: ignore[attr-defined]


@disturbance(
    "functions and hooks",
    lambda: (sys.excepthook, sys.unraisablehook, threading.excepthook, tempfile.tempdir),
)
def set_hooks(_: Path) -> None:
    any_sys.excepthook = any_sys.unraisablehook = any_threading.excepthook = lambda *_: None
    sys.tracebacklimit = 0
    tempfile.tempdir = "/nowhere"


OF_THE_PLATFORM = logging.getLogger("dagster_stack.worker.isolation")


def logging_state() -> Any:
    root = logging.root
    return [
        [(each.level, each.disabled, each.propagate, list(each.handlers), list(each.filters)) for each in (root, OF_THE_PLATFORM)],
        [(each.level, each.formatter, list(each.filters)) for each in root.handlers],
        root.manager.disable, logging.raiseExceptions, logging.getLoggerClass(), logging.getLogRecordFactory(),
        OF_THE_PLATFORM.isEnabledFor(logging.CRITICAL), len(logging.getLogger("of a step").handlers),
    ]  # fmt: skip


@disturbance("logging", logging_state)
def change_loggers(_: Path) -> None:
    logging.disable()
    logging.raiseExceptions = False
    logging.root.setLevel(logging.CRITICAL)
    OF_THE_PLATFORM.disabled = True
    OF_THE_PLATFORM.propagate = False
    OF_THE_PLATFORM.addFilter(lambda _: False)
    for handler in logging.root.handlers:
        handler.setLevel(77)
        handler.setFormatter(None)
    logging.getLogger("of a step").addHandler(logging.StreamHandler())
    logging.setLoggerClass(type("OtherLogger", (logging.Logger,), {}))
    any_logging.setLogRecordFactory(lambda *_, **__: None)


@disturbance("logging", logging_state)
def configure_logging_anew(_: Path) -> None:
    import logging.config

    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True, "root": {"level": "ERROR"}})


@disturbance("warnings", lambda: (list(warnings.filters), warnings.showwarning))
def silence_warnings(_: Path) -> None:
    warnings.simplefilter("ignore")
    warnings.showwarning = lambda *_, **__: None


@disturbance("locale", lambda: (locale.setlocale(locale.LC_ALL), locale.str(1.5)))
def change_the_locale(_: Path) -> None:
    for name in ("C", "C.UTF-8", "POSIX"):
        if locale.setlocale(locale.LC_ALL) != name:
            with suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, name)
                return


@disturbance("decimal", lambda: (decimal.Decimal(1) / 3, decimal.DefaultContext.prec))
def compute_with_three_digits(_: Path) -> None:
    decimal.getcontext().prec = 3
    decimal.DefaultContext.prec = 3
    decimal.getcontext().traps[decimal.Inexact] = True


@disturbance("floating point", lambda: (isolation._libm.fegetround(), 0.1 + 0.7))
def round_upward(_: Path) -> None:
    isolation._libm.fesetround(0x800)


@disturbance("socket timeout", socket.getdefaulttimeout)
def set_a_socket_timeout(_: Path) -> None:
    socket.setdefaulttimeout(0.001)


@disturbance("recursion limit", sys.getrecursionlimit)
def raise_the_recursion_limit(_: Path) -> None:
    sys.setrecursionlimit(sys.getrecursionlimit() + 1000)


@disturbance("digits of integers", sys.get_int_max_str_digits)
def allow_long_integers(_: Path) -> None:
    sys.set_int_max_str_digits(0)


@disturbance("switch interval", sys.getswitchinterval)
def change_the_switch_interval(_: Path) -> None:
    sys.setswitchinterval(0.5)


@disturbance("stack of threads", threading.stack_size)
def change_the_stack_of_threads(_: Path) -> None:
    threading.stack_size(1 << 20)


@disturbance("field size of CSV", csv.field_size_limit)
def allow_long_fields(_: Path) -> None:
    csv.field_size_limit(sys.maxsize)


@disturbance("event loop policy", lambda: type(asyncio.get_event_loop_policy()))
def change_the_loop_policy(_: Path) -> None:
    asyncio.set_event_loop_policy(type("OtherPolicy", (asyncio.DefaultEventLoopPolicy,), {})())


def usable_loop() -> bool:
    """As it is in a process in which no loop has run: there is one for who asks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = asyncio.get_event_loop_policy().get_event_loop()
        usable = not loop.is_closed()
        loop.close()
        asyncio.set_event_loop_policy(None)
    return usable


@disturbance("event loop policy", usable_loop)
def run_a_loop(_: Path) -> None:
    async def nothing() -> None: ...

    asyncio.run(nothing())


@disturbance(
    "garbage collector", lambda: (gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks))
)
def change_the_garbage_collector(_: Path) -> None:
    gc.disable()
    gc.set_threshold(7)
    gc.callbacks.append(lambda *_: None)


@disturbance(
    "multiprocessing",
    lambda: (
        multiprocessing.get_start_method(allow_none=True),
        dict(any_process._config),
    ),
)
def choose_a_start_method(tmp_path: Path) -> None:
    multiprocessing.set_start_method("spawn", force=True)
    any_process._config["tempdir"] = str(tmp_path)


@disturbance("memory tracing", tracemalloc.is_tracing)
def trace_memory(_: Path) -> None:
    tracemalloc.start()


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


def test_loggers_of_a_module_that_a_step_loads_stay_as_it_has_set_them_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so once: the next step would not have it."""
    (tmp_path / "module_of_a_step.py").write_text("import logging\nlogging.getLogger(__name__).setLevel(7)")
    monkeypatch.syspath_prepend(str(tmp_path))

    with undisturbed():
        import module_of_a_step  # type: ignore[import-not-found] # noqa: F401

    assert logging.getLogger("module_of_a_step").level == 7


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`signal.getsignal` says None for a handler that C code installed: it can't be put back."""
    installed: list[Any] = []
    monkeypatch.setattr(isolation, "getsignal", lambda number: None)
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
        any_isolation.replace_process = lambda: replaced.append(True)
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


# --- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_daemon", [True, False])
def test_a_thread_that_still_runs_is_named_and_its_process_replaced(
    monkeypatch: pytest.MonkeyPatch, is_daemon: bool
) -> None:
    told: list[str] = []
    replaced: list[bool] = []
    monkeypatch.setattr(isolation, "replace_process", lambda: replaced.append(True))
    end = threading.Event()

    def poll_for_ever() -> None:
        end.wait()

    with undisturbed(told.append):
        thread = threading.Thread(target=poll_for_ever, name="poller", daemon=is_daemon)
        thread.start()

    end.set()
    thread.join()
    (reason,) = told
    assert 'left threads that still run ("poller" of tests.unit.test_isolation.' in reason
    assert "poll_for_ever" in reason
    assert replaced == [True]


def test_threads_that_end_with_their_step_are_nobodys_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy this machine is
    monkeypatch.setattr(leftovers, "GRACE_SECS", 10)
    from concurrent.futures import ThreadPoolExecutor

    told: list[str] = []

    with undisturbed(told.append):
        executor = ThreadPoolExecutor(4)
        list(executor.map(abs, range(100)))
        executor.shutdown(wait=False)
        threading.Thread(target=time.sleep, args=(0.01,)).start()

    assert told == []


def test_threads_of_before_and_of_the_platform_are_nobodys_matter() -> None:
    told: list[str] = []
    end = threading.Event()
    before = threading.Thread(target=end.wait)
    before.start()

    with undisturbed(told.append):
        timer = threading.Timer(10, end.set)
        timer.name = "interruption"
        timer.start()

    end.set()
    timer.cancel()
    before.join()
    assert told == []


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
    """Measured 0.3 ms on 2 cores, of which the larger part is loggers, modules and variables."""

    def step() -> None:
        with undisturbed():
            pass

    def cost(act: Callable[[], Any]) -> float:
        return 1e6 * min(timeit.repeat(act, number=10, repeat=20, timer=time.thread_time)) / 10

    def use(each: isolation.Kept) -> Callable[[], None]:
        return lambda: each.restore(each.save())

    costs = {each.name: cost(use(each)) for each in KEPT}
    whole = cost(step)

    with capsys.disabled():
        print("\nµs:", ", ".join(f"{name} {cost:.0f}" for name, cost in costs.items()), f"; all {whole:.0f}")
    assert whole < 2000
