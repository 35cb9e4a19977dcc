"""The list of what is put back after each step: 0.5 ms of processor for all of it; `test_isolation.py` prints its parts.

What can't be put back ends with the process, which is replaced after the step. Libraries' own globals (options of pandas,
a cache of yours) stay: `dagster-stack/isolation: "process"` on a step gives it a process of its own.
"""

import asyncio
import calendar
import csv
import faulthandler
import locale
import os
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dagster_stack.pool.isolation import (
    arithmetic,
    inherited,
    interpreter,
    loggers,
    modules,
    signals,
    streams,
)


@dataclass(frozen=True)
class Kept:
    """One thing that a step can change for its whole process. `restore` raises NotRestored, or any error, if it can't."""

    name: str
    save: Callable[[], Any]
    restore: Callable[[Any], None]


def setting(name: str, get: Callable[[], Any], put: Callable[[Any], Any]) -> Kept:
    """A thing with one value, which is only put back when it is another one."""

    def restore(saved: Any) -> None:
        if get() != saved:
            put(saved)

    return Kept(name, get, restore)


def nothing() -> None:
    """Nothing is saved: it only looks at what is there after the step, or gives the next step something fresh."""


def set_locale(text: str) -> None:
    locale.setlocale(locale.LC_ALL, text)


def set_hooks(hooks: Any) -> None:
    sys.set_asyncgen_hooks(*hooks)


#: In the order of putting back: first what could call the step's code again, then what the others need for it.
KEPT: tuple[Kept, ...] = (
    Kept("faulthandler", faulthandler.is_enabled, signals.restore_faulthandler),
    Kept("timers", signals.timers, signals.restore_timers),
    Kept("signals", signals.handlers, signals.restore_handlers),
    Kept("wakeup descriptor", signals.wakeup_descriptor, signals.restore_wakeup_descriptor),
    setting("trace", sys.gettrace, sys.settrace),
    setting("profile", sys.getprofile, sys.setprofile),
    Kept("debuggers and profilers", interpreter.tools, interpreter.stop_tools),
    Kept("context variables", interpreter.enter_context, interpreter.leave_context),
    Kept("paths and arguments", modules.lists, modules.restore_lists),
    Kept("modules", modules.modules, modules.restore_modules),
    Kept("functions and hooks", modules.attributes, modules.restore_attributes),
    Kept("registries", modules.registries, modules.restore_registries),
    Kept("environment", inherited.environment, inherited.restore_environment),
    Kept("time zone", inherited.time_zone, inherited.restore_time_zone),
    Kept("folder", inherited.folder, inherited.restore_folder),
    setting("umask", inherited.umask, os.umask),
    Kept("resource limits", inherited.limits, inherited.restore_limits),
    Kept("priority and processors", inherited.scheduling, inherited.restore_scheduling),
    Kept("session and user", inherited.session, inherited.restore_session),
    Kept("process attributes", inherited.attributes, inherited.restore_attributes),
    # Before the streams, which leave numbers free.
    Kept("open files", nothing, streams.check_open_files),
    Kept("streams", streams.streams, streams.restore_streams),
    Kept("logging", loggers.loggers, loggers.restore_loggers),
    Kept("warnings", loggers.catch_warnings, loggers.restore_warnings),
    setting("locale", lambda: locale.setlocale(locale.LC_ALL), set_locale),
    Kept("decimal", arithmetic.decimals, arithmetic.restore_decimals),
    Kept("floating point", arithmetic.floating_point, arithmetic.restore_floating_point),
    setting("socket timeout", socket.getdefaulttimeout, socket.setdefaulttimeout),
    setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    setting("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    setting("switch interval", sys.getswitchinterval, sys.setswitchinterval),
    setting("stack of threads", threading.stack_size, threading.stack_size),
    setting("field size of CSV", csv.field_size_limit, csv.field_size_limit),
    setting("first weekday", calendar.firstweekday, calendar.setfirstweekday),
    setting("error handlers of codecs", interpreter.error_handlers, interpreter.restore_error_handlers),
    setting("flags of libraries", sys.getdlopenflags, sys.setdlopenflags),
    setting("asynchronous generators", sys.get_asyncgen_hooks, set_hooks),
    setting(
        "origins of coroutines",
        sys.get_coroutine_origin_tracking_depth,
        sys.set_coroutine_origin_tracking_depth,
    ),
    Kept("event loop policy", asyncio.get_event_loop_policy, interpreter.restore_loop_policy),
    setting("garbage collector", interpreter.collector, interpreter.restore_collector),
    Kept("multiprocessing", interpreter.start_method, interpreter.restore_start_method),
    Kept("memory tracing", tracemalloc.is_tracing, interpreter.stop_tracing_memory),
    Kept("random numbers", nothing, arithmetic.seed_anew),
)
