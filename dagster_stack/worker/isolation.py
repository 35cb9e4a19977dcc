"""What a process looks like to each step: as if no other had been there before.

KEPT is the list of what is put back after each step. What can't be put back ends with the process, which is replaced
after the step. Libraries' own globals (options of pandas, a cache of yours) stay: `dagster-stack/isolation: "process"` on
a step gives it a process of its own.
"""

import asyncio
import builtins
import csv
import ctypes
import datetime
import decimal
import faulthandler
import gc
import http.client
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
import warnings
from _signal import getsignal  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any

from dagster import DagsterInstance, DagsterRun

from dagster_stack.errors import NotRestored
from dagster_stack.worker.leftovers import Threads
from dagster_stack.worker.replacement import replace_process

logger = logging.getLogger(__name__)


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


@contextmanager
def undisturbed(tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Undo what user code does to its process. `tell` gets each reason why the process is replaced after this task.

    Outside of a main thread signals stay as they are: only that one may set them.
    """
    threads = Threads()
    saved = [(kept, kept.save()) for kept in KEPT]
    try:
        yield
    finally:
        changed = [name for kept, state in saved if (name := _not_restored(kept, state))]
        if changed:
            tell(f"changed what can't be put back ({', '.join(changed)})")
        if left := threads.left():
            tell(f"left threads that still run ({', '.join(left)})")
        if changed or left:
            replace_process()


def tell_left(
    instance: DagsterInstance, run: DagsterRun, who: str, left: Sequence[str], step_key: str | None = None
) -> None:
    """Say in a run's log why this process is replaced; when that can't be said there any more, in the service's."""
    reason = f"{who} {'; it '.join(left)}. Its process is replaced."
    logger.warning("%s", reason, extra={"action": "process.replaced"})
    try:
        instance.report_engine_event(reason, run, step_key=step_key)
    except Exception as error:
        logger.warning("the run could not be told: %s", error, extra={"action": "process.not_told"})


def _not_restored(kept: Kept, state: Any) -> str | None:
    # A signal of the step's own may come in between, until timers and handlers are those of the process.
    for is_last in (False, True):
        try:
            kept.restore(state)
        except NotRestored as error:
            return str(error)
        except Exception as error:
            if is_last:
                return f"{kept.name}: {error!r}"
        else:
            return None
    return None


# --- signals ------------------------------------------------------------------------------------------------------

TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
SIGNALS = tuple(map(int, sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})))


#: A timer that went off while the step had it.
SOON_SECS = 0.001


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _timers() -> tuple[float, list[tuple[float, float]]]:
    return monotonic(), [signal.getitimer(timer) for timer in TIMERS]


def _restore_timers(saved: tuple[float, list[tuple[float, float]]]) -> None:
    at, timers = saved
    for timer, (left, interval) in zip(TIMERS, timers, strict=True):
        if left:
            signal.setitimer(timer, max(left + at - monotonic(), SOON_SECS), interval)
        elif signal.getitimer(timer)[0]:
            signal.setitimer(timer, 0)


def _signals() -> tuple[list[Any], set[Any]]:
    return list(map(getsignal, SIGNALS)), signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _restore_signals(saved: tuple[list[Any], set[Any]]) -> None:
    handlers, mask = saved
    if not _is_main():
        return
    waiting = signal.sigpending() - mask
    if (
        not waiting
        and mask == set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        and list(map(getsignal, SIGNALS)) == handlers
    ):
        return
    for number, handler in zip(SIGNALS, handlers, strict=True):
        # None: C code has set it, and only C code can.
        if handler is None:
            continue
        if number in waiting and handler == signal.SIG_DFL:
            # One that the step has blocked would end the process now: to ignore it is to forget it.
            signal.signal(number, signal.SIG_IGN)
            signal.signal(number, handler)
        elif getsignal(number) is not handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wakeup_descriptor() -> int:
    if not _is_main():
        return -1
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor)
    return descriptor


def _restore_wakeup_descriptor(saved: int) -> None:
    if _is_main():
        signal.set_wakeup_fd(saved)


def _faulthandler() -> bool:
    return faulthandler.is_enabled()


def _restore_faulthandler(was_enabled: bool) -> None:
    # A dump that is due later might end the process in the middle of the next step.
    faulthandler.cancel_dump_traceback_later()
    if faulthandler.is_enabled() != was_enabled:
        (faulthandler.enable if was_enabled else faulthandler.disable)()


# --- what children inherit ----------------------------------------------------------------------------------------

#: `environ` of the C library: what `os.putenv` or C code set is in it too, and every child gets it.
_ENVIRON = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")


def _environment() -> list[bytes]:
    entries: list[bytes] = []
    # NULL after C's clearenv.
    while _ENVIRON and (entry := _ENVIRON[len(entries)]) is not None:
        entries.append(entry)
    return entries


def _restore_environment(saved: list[bytes]) -> None:
    variables = dict(entry.partition(b"=")[::2] for entry in saved)
    if _environment() != saved:
        now = dict(entry.partition(b"=")[::2] for entry in _environment())
        for name in now.keys() - variables.keys():
            os.unsetenv(name)
        for name, value in variables.items():
            if now.get(name) != value:
                os.putenv(name, value)
    # What Python knows of it is a copy of its own. One by one: each is a call of the C library.
    known = dict(os.environb)
    for name in known.keys() - variables.keys():
        del os.environb[name]
    for name, value in variables.items():
        if known.get(name) != value:
            os.environb[name] = value


def _time_zone() -> Any:
    return os.environ.get("TZ"), time.tzname, time.timezone, time.altzone


def _restore_time_zone(saved: Any) -> None:
    # Always: by `time.mktime` the C library may still have the zone of a TZ that is taken back by now.
    time.tzset()
    if _time_zone() != saved:
        raise NotRestored("time zone")


def _folder() -> str | None:
    """The working directory; None when user code removed it from under us."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _restore_folder(saved: str | None) -> None:
    if saved and _folder() != saved:
        # It may be gone meanwhile.
        with suppress(FileNotFoundError):
            os.chdir(saved)


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(limit) for limit in LIMITS]


def _restore_limits(saved: list[tuple[int, int]]) -> None:
    for limit, before, now in zip(LIMITS, saved, _limits(), strict=True):
        if now != before:
            try:
                resource.setrlimit(limit, before)
            except (ValueError, OSError):
                # A hard limit that was lowered stays so.
                raise NotRestored("resource limits") from None


def _scheduling() -> Any:
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.sched_getscheduler(0)


def _restore_scheduling(saved: Any) -> None:
    priority, processors, policy = saved
    try:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, os.sched_param(0))
        if os.sched_getaffinity(0) != processors:
            os.sched_setaffinity(0, processors)
        if os.getpriority(os.PRIO_PROCESS, 0) != priority:
            os.setpriority(os.PRIO_PROCESS, 0, priority)
    except OSError:
        raise NotRestored("priority") from None


def _session() -> Any:
    return os.getsid(0), os.getpgid(0), os.getresuid(), os.getresgid()


def _restore_session(saved: Any) -> None:
    if _session() != saved:
        raise NotRestored("session, process group or user")


#: What `prctl` gets and sets: whether a dump of memory is allowed, how late timers may be, privileges (`man 2 prctl`).
PRCTL = {"PR_SET_DUMPABLE": (3, 4), "PR_SET_TIMERSLACK": (30, 29), "PR_SET_NO_NEW_PRIVS": (39, 38)}
_prctl = ctypes.CDLL(None).prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def _attributes() -> list[int]:
    return [_prctl(get, 0, 0, 0, 0) for get, _ in PRCTL.values()]


def _restore_attributes(saved: list[int]) -> None:
    for (name, (get, put)), before in zip(PRCTL.items(), saved, strict=True):
        if _prctl(get, 0, 0, 0, 0) != before and _prctl(put, before, 0, 0, 0) != 0:
            raise NotRestored(name)


# --- streams and files --------------------------------------------------------------------------------------------

STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
#: How a stream of text writes; `reconfigure` sets these.
FORM = ("encoding", "errors", "line_buffering", "write_through")


def _file_of(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _streams() -> Any:
    """The streams, how they write, and copies of the first three descriptors, with the file behind each."""
    streams = [getattr(sys, name) for name in STREAMS]
    forms = [{name: getattr(stream, name, None) for name in FORM} for stream in streams[:3]]
    copies = []
    for descriptor in range(3):
        # A process may be started without one of them.
        with suppress(OSError):
            copies.append((descriptor, os.dup(descriptor), _file_of(descriptor)))
    return streams, forms, copies


def _restore_streams(saved: Any) -> None:
    streams, forms, copies = saved
    while copies:
        descriptor, copy, file = copies.pop()
        try:
            if _file_of(copy) != file:
                raise NotRestored("descriptors")
        except OSError:
            # The step has closed all that there is: the process's connections too.
            raise NotRestored("descriptors") from None
        try:
            is_same = _file_of(descriptor) == file
        except OSError:
            is_same = False
        if not is_same:
            os.dup2(copy, descriptor)
        os.close(copy)
    for place, (stream, form) in enumerate(zip(streams[:3], forms, strict=True)):
        if getattr(stream, "closed", False):
            mode = "w" if place else "r"
            streams[place] = open(place, mode, closefd=False, encoding=form["encoding"])  # noqa: SIM115
        elif form != {name: getattr(stream, name, None) for name in FORM} and hasattr(stream, "reconfigure"):
            stream.reconfigure(**form)
    for name, stream in zip(STREAMS, streams, strict=True):
        setattr(sys, name, stream)


def _open_files() -> None:
    """Nothing to save: what counts is how many are left."""


def _check_open_files(_: None) -> None:
    # The lowest free number: no list of thousands is to be read.
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    if lowest > resource.getrlimit(resource.RLIMIT_NOFILE)[0] / 2:
        raise NotRestored(f"{lowest} open files")


# --- logging and warnings -----------------------------------------------------------------------------------------


def _state(logger: logging.Logger) -> Any:
    return logger.level, logger.propagate, logger.disabled, logger.handlers, logger.filters


def _loggers() -> list[logging.Logger]:
    known = list(logging.Logger.manager.loggerDict.values())
    return [logging.root, *(each for each in known if isinstance(each, logging.Logger))]


def _logging() -> Any:
    # Most have none: an object that is not made is none that the garbage collector looks at.
    loggers = {
        each: (each.level, each.propagate, each.disabled, each.handlers[:], each.filters[:])
        for each in _loggers()
    }
    handlers = [
        (handler, handler.level, handler.formatter, handler.filters[:])
        for logger in loggers
        if logger.handlers
        for handler in logger.handlers
    ]
    return loggers, handlers, logging.root.manager.disable, len(sys.modules)


def _restore_logging(saved: Any) -> None:
    loggers, handlers, disabled_below, modules = saved
    for handler, level, formatter, filters in handlers:
        handler.level, handler.formatter, handler.filters[:] = level, formatter, filters
    new = []
    for logger in _loggers():
        before = loggers.get(logger)
        if before is None:
            new.append(logger)
        elif _state(logger) != before:
            level, logger.propagate, logger.disabled, logger.handlers[:], logger.filters[:] = before
            logger.setLevel(level)
    if new:
        # Those of modules that the step loaded stay as these have set them up, which they do once.
        loaded = set(islice(sys.modules, modules, None))
        for logger in new:
            if logger.name not in loaded:
                logger.setLevel(logging.NOTSET)
                logger.handlers[:], logger.filters[:] = [], []
                logger.propagate, logger.disabled = True, False
    if logging.root.manager.disable != disabled_below:
        logging.disable(disabled_below)


def _warnings() -> Any:
    kept = warnings.catch_warnings()
    kept.__enter__()
    return kept


def _restore_warnings(kept: Any) -> None:
    kept.__exit__(None, None, None)


# --- Python -------------------------------------------------------------------------------------------------------

#: Modules of the standard library whose functions and hooks are those of the whole process.
STANDARD = (
    builtins, datetime, http.client, json, logging, os, random, shutil, socket, ssl, subprocess, tempfile, threading, time,
    urllib.request,
)  # fmt: skip
#: Of `sys`, which holds much that changes by itself.
HOOKS = (
    "excepthook",
    "unraisablehook",
    "displayhook",
    "breakpointhook",
    "dont_write_bytecode",
    "tracebacklimit",
    "exit",
)
LISTS = ("path", "argv", "meta_path", "path_hooks")
MISSING = object()


def _paths() -> list[tuple[str, list[Any], list[Any]]]:
    return [(name, getattr(sys, name), list(getattr(sys, name))) for name in LISTS]


def _restore_paths(saved: list[tuple[str, list[Any], list[Any]]]) -> None:
    for name, kept, content in saved:
        setattr(sys, name, kept)
        if kept != content:
            kept[:] = content


def _modules() -> dict[str, Any]:
    return sys.modules.copy()


def _restore_modules(saved: dict[str, Any]) -> None:
    """New ones stay; those that were there are what others have imported already."""
    modules = sys.modules
    # Without their names, which would be looked up one by one: 100 µs.
    if list(modules.values()) == list(saved.values()):
        return
    for name, module in saved.items():
        if modules.get(name, MISSING) is not module:
            modules[name] = module


def _standard() -> Any:
    hooks = [getattr(sys, name, MISSING) for name in HOOKS]
    return hooks, [vars(module).copy() for module in STANDARD], len(sys.modules)


def _restore_standard(saved: Any) -> None:
    hooks, contents, modules = saved
    for name, hook in zip(HOOKS, hooks, strict=True):
        if getattr(sys, name, MISSING) is not hook:
            _set_or_delete(vars(sys), name, hook)
    replaced = []
    for module, content in zip(STANDARD, contents, strict=True):
        present = vars(module)
        if present == content:
            continue
        for name in present.keys() | content.keys():
            if present.get(name, MISSING) is not content.get(name, MISSING):
                replaced += [f"{module.__name__}.{name}"] if callable(content.get(name)) else []
                _set_or_delete(present, name, content.get(name, MISSING))
    # Whoever was loaded meanwhile may have taken the other one for good.
    if replaced and len(sys.modules) > modules:
        raise NotRestored(f"functions that were replaced, such as {replaced[0]}")


def _set_or_delete(content: Any, name: str, value: Any) -> None:
    if value is MISSING:
        content.pop(name, None)
    else:
        content[name] = value


def _loop_policy() -> Any:
    return asyncio.get_event_loop_policy()


def _restore_loop_policy(saved: Any) -> None:
    # A new one of the default has no current loop, nor remembers that there was one, as after `asyncio.run`.
    is_default = type(saved) is asyncio.DefaultEventLoopPolicy
    asyncio.set_event_loop_policy(None if is_default else saved)


def _collector() -> Any:
    return gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks)


def _restore_collector(saved: Any) -> None:
    enabled, thresholds, debug, gc.callbacks[:] = saved
    if gc.isenabled() != enabled:
        (gc.enable if enabled else gc.disable)()
    if gc.get_threshold() != thresholds:
        gc.set_threshold(*thresholds)
    gc.set_debug(debug)


DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _decimal() -> Any:
    default = decimal.DefaultContext
    return decimal.getcontext().copy(), [getattr(default, name) for name in DECIMAL], dict(default.traps)


def _restore_decimal(saved: Any) -> None:
    context, values, traps = saved
    decimal.setcontext(context)
    for name, value in zip(DECIMAL, values, strict=True):
        setattr(decimal.DefaultContext, name, value)
    decimal.DefaultContext.traps.update(traps)


_libm = ctypes.CDLL("libm.so.6")
#: Larger than `fenv_t` of any processor.
FENV_BYTES = 256


def _floating_point() -> Any:
    environment = ctypes.create_string_buffer(FENV_BYTES)
    _libm.fegetenv(environment)
    return environment


def _restore_floating_point(saved: Any) -> None:
    _libm.fesetenv(saved)


def _multiprocessing() -> Any:
    config = getattr(multiprocessing.current_process(), "_config", {})
    return multiprocessing.get_start_method(allow_none=True), config, dict(config)


def _restore_multiprocessing(saved: Any) -> None:
    method, config, content = saved
    if multiprocessing.get_start_method(allow_none=True) != method:
        multiprocessing.set_start_method(method, force=True)
    # Also its temporary folder, which is gone with the step's.
    if config != content:
        config.clear()
        config.update(content)


def _nothing() -> None:
    """Nothing to save: the next step gets what nobody has had."""


def _seed_anew(_: None) -> None:
    """The seed of one step must not decide the numbers of the next. To put the state back would repeat those of this one."""
    random.seed()
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()


def _stop_tracing_memory(was_on: bool) -> None:
    if tracemalloc.is_tracing() and not was_on:
        tracemalloc.stop()


#: In the order in which they are put back: first what could call the step's code again.
KEPT: tuple[Kept, ...] = (
    Kept("timers", _timers, _restore_timers),
    Kept("signals", _signals, _restore_signals),
    Kept("wakeup descriptor", _wakeup_descriptor, _restore_wakeup_descriptor),
    setting("trace", sys.gettrace, sys.settrace),
    setting("profile", sys.getprofile, sys.setprofile),
    Kept("faulthandler", _faulthandler, _restore_faulthandler),
    Kept("environment", _environment, _restore_environment),
    Kept("time zone", _time_zone, _restore_time_zone),
    Kept("folder", _folder, _restore_folder),
    setting("umask", _umask, os.umask),
    Kept("resource limits", _limits, _restore_limits),
    Kept("priority and processors", _scheduling, _restore_scheduling),
    Kept("session and user", _session, _restore_session),
    Kept("process attributes", _attributes, _restore_attributes),
    # Before the streams, which leave numbers free.
    Kept("open files", _open_files, _check_open_files),
    Kept("streams", _streams, _restore_streams),
    Kept("paths and arguments", _paths, _restore_paths),
    Kept("modules", _modules, _restore_modules),
    Kept("functions and hooks", _standard, _restore_standard),
    Kept("logging", _logging, _restore_logging),
    Kept("warnings", _warnings, _restore_warnings),
    setting(
        "locale", lambda: locale.setlocale(locale.LC_ALL), lambda text: locale.setlocale(locale.LC_ALL, text)
    ),
    Kept("decimal", _decimal, _restore_decimal),
    Kept("floating point", _floating_point, _restore_floating_point),
    setting("socket timeout", socket.getdefaulttimeout, socket.setdefaulttimeout),
    setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    setting("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    setting("switch interval", sys.getswitchinterval, sys.setswitchinterval),
    setting("stack of threads", threading.stack_size, threading.stack_size),
    setting("field size of CSV", csv.field_size_limit, csv.field_size_limit),
    Kept("event loop policy", _loop_policy, _restore_loop_policy),
    Kept("garbage collector", _collector, _restore_collector),
    Kept("multiprocessing", _multiprocessing, _restore_multiprocessing),
    Kept("memory tracing", tracemalloc.is_tracing, _stop_tracing_memory),
    Kept("random numbers", _nothing, _seed_anew),
)
