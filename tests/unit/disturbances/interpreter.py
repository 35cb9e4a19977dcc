"""What the interpreter keeps."""

import asyncio
import codecs
import contextvars
import cProfile
import gc
import multiprocessing
import multiprocessing.spawn
import os
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

from dagster_stack.pool.isolation import interpreter
from tests.unit.disturbances import disturbance

#: As user code sees them, which does not ask for types.
any_process: Any = multiprocessing.current_process()


@disturbance("trace", sys.gettrace)
def trace(_: Path) -> None:
    sys.settrace(lambda *_: None)


@disturbance("profile", sys.getprofile)
def profile(_: Path) -> None:
    sys.setprofile(lambda *_: None)


@disturbance("recursion limit", sys.getrecursionlimit)
def raise_the_recursion_limit(_: Path) -> None:
    sys.setrecursionlimit(sys.getrecursionlimit() + 1000)


@disturbance("digits of integers", sys.get_int_max_str_digits)
def allow_long_integers(_: Path) -> None:
    sys.set_int_max_str_digits(0)


@disturbance("switch interval", sys.getswitchinterval)
def change_the_switch_interval(_: Path) -> None:
    sys.setswitchinterval(0.5)


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
        os.fsdecode(multiprocessing.spawn.get_executable()),
    ),
)
def choose_a_start_method(tmp_path: Path) -> None:
    multiprocessing.set_start_method("spawn", force=True)
    multiprocessing.set_executable("/bin/false")
    any_process._config["tempdir"] = str(tmp_path)


@disturbance("memory tracing", tracemalloc.is_tracing)
def trace_memory(_: Path) -> None:
    tracemalloc.start()


OF_A_STEP: contextvars.ContextVar[str] = contextvars.ContextVar("of_a_step")


@disturbance("context variables", lambda: list(contextvars.copy_context()))
def set_a_context_variable(_: Path) -> None:
    OF_A_STEP.set("left")


#: One that is forgotten would complain that it is not the active one.
PROFILERS: list[cProfile.Profile] = []


@disturbance("debuggers and profilers", lambda: (sys.getprofile(), interpreter.tools()))
def leave_a_profiler(_: Path) -> None:
    PROFILERS.append(cProfile.Profile())
    PROFILERS[-1].enable()


@disturbance("error handlers of codecs", lambda: b"\xffa".decode(errors="replace"))
def replace_an_error_handler(_: Path) -> None:
    codecs.register_error("replace", codecs.ignore_errors)


@disturbance("flags of libraries", sys.getdlopenflags)
def load_libraries_for_all(_: Path) -> None:
    sys.setdlopenflags(sys.getdlopenflags() | os.RTLD_GLOBAL)


@disturbance("asynchronous generators", sys.get_asyncgen_hooks)
def watch_asynchronous_generators(_: Path) -> None:
    sys.set_asyncgen_hooks(firstiter=print, finalizer=print)


@disturbance("origins of coroutines", sys.get_coroutine_origin_tracking_depth)
def track_coroutines(_: Path) -> None:
    sys.set_coroutine_origin_tracking_depth(7)
