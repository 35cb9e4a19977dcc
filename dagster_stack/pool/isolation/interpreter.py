"""What the interpreter keeps for a process: context variables, event loops, its garbage collector, its tools."""

import asyncio
import codecs
import contextvars
import ctypes
import gc
import multiprocessing
import sys
import tracemalloc
from typing import Any

_enter = ctypes.pythonapi.PyContext_Enter
_exit = ctypes.pythonapi.PyContext_Exit
_enter.argtypes = _exit.argtypes = [ctypes.py_object]


def enter_context() -> contextvars.Context:
    """A copy of the current context, in which everything happens from now on."""
    context = contextvars.copy_context()
    _enter(context)
    return context


def leave_context(context: contextvars.Context) -> None:
    _exit(context)


def restore_loop_policy(saved: Any) -> None:
    # A new one of the default has no current loop, nor remembers that there was one, as after `asyncio.run`.
    is_default = type(saved) is asyncio.DefaultEventLoopPolicy
    asyncio.set_event_loop_policy(None if is_default else saved)


def collector() -> Any:
    return gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks)


def restore_collector(saved: Any) -> None:
    enabled, thresholds, debug, gc.callbacks[:] = saved
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*thresholds)
    gc.set_debug(debug)


def start_method() -> Any:
    config = getattr(multiprocessing.current_process(), "_config", {})
    spawn = sys.modules.get("multiprocessing.spawn")
    program = spawn.get_executable() if spawn else None
    return multiprocessing.get_start_method(allow_none=True), config, dict(config), program


def restore_start_method(saved: Any) -> None:
    method, config, content, program = saved
    if multiprocessing.get_start_method(allow_none=True) != method:
        multiprocessing.set_start_method(method, force=True)
    if spawn := sys.modules.get("multiprocessing.spawn"):
        spawn.set_executable(program or sys.executable)
    # Also its temporary folder, which is gone with the step's.
    if config != content:
        config.clear()
        config.update(content)


def stop_tracing_memory(was_on: bool) -> None:
    if tracemalloc.is_tracing() and not was_on:
        tracemalloc.stop()


def tools() -> list[str | None]:
    """Debuggers and profilers that are registered, from Python 3.12 on."""
    monitoring: Any = getattr(sys, "monitoring", None)
    return [monitoring.get_tool(number) for number in range(6)] if monitoring else []


def stop_tools(saved: list[str | None]) -> None:
    if tools() == saved:
        return
    monitoring: Any = getattr(sys, "monitoring", None)
    for number, tool in enumerate(saved):
        if tool is None and monitoring.get_tool(number):
            monitoring.set_events(number, 0)
            monitoring.free_tool_id(number)


#: Python's own, which can be registered anew under the same names.
ERROR_HANDLERS = (
    "strict", "ignore", "replace", "xmlcharrefreplace", "backslashreplace", "namereplace", "surrogateescape",
    "surrogatepass",
)  # fmt: skip


def error_handlers() -> list[Any]:
    return list(map(codecs.lookup_error, ERROR_HANDLERS))


def restore_error_handlers(saved: list[Any]) -> None:
    for name, handler in zip(ERROR_HANDLERS, saved, strict=True):
        codecs.register_error(name, handler)
