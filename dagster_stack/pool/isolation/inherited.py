"""What the kernel and the C library keep for a process, and its children inherit."""

import ctypes
import os
import platform
import resource
import time
from contextlib import suppress
from typing import Any

from dagster_stack.errors import NotRestored

_libc = ctypes.CDLL(None)

# --- variables, folder, umask -------------------------------------------------------------------------------------

#: `environ` of the C library: what `os.putenv` or C code set is in it too, and every child gets it.
_ENVIRON = ctypes.POINTER(ctypes.c_char_p).in_dll(_libc, "environ")
#: What Python knows of it is a copy of its own; without its wrapper, which encodes each one.
_known: dict[bytes, bytes] = vars(os.environb)["_data"]


def environment() -> tuple[list[bytes], dict[bytes, bytes]]:
    return _entries(), _known.copy()


def _entries() -> list[bytes]:
    entries: list[bytes] = []
    # NULL after C's clearenv.
    while _ENVIRON and (entry := _ENVIRON[len(entries)]) is not None:
        entries.append(entry)
    return entries


def _variables(entries: list[bytes]) -> dict[bytes, bytes]:
    return dict(entry.partition(b"=")[::2] for entry in entries)


def restore_environment(saved: tuple[list[bytes], dict[bytes, bytes]]) -> None:
    if environment() == saved:
        return
    entries, known = saved
    before, now = _variables(entries), _variables(_entries())
    # One by one: each is a call of the C library.
    for name in now.keys() - before.keys():
        os.unsetenv(name)
    for name, value in before.items():
        if now.get(name) != value:
            os.putenv(name, value)
    _known.clear()
    _known.update(known)


def time_zone() -> Any:
    return os.environ.get("TZ"), time.tzname, time.timezone, time.altzone


def restore_time_zone(saved: Any) -> None:
    # Always: after `time.mktime` the C library may still use a TZ that was put back meanwhile.
    time.tzset()
    if time_zone() != saved:
        raise NotRestored("time zone")


def folder() -> str | None:
    """The working directory; None when user code removed it from under us."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def restore_folder(saved: str | None) -> None:
    if saved and folder() != saved:
        # It may be gone meanwhile.
        with suppress(FileNotFoundError):
            os.chdir(saved)


def umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


# --- limits, priority, session ------------------------------------------------------------------------------------

LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def limits() -> list[tuple[int, int]]:
    return list(map(resource.getrlimit, LIMITS))


def restore_limits(saved: list[tuple[int, int]]) -> None:
    for limit, before, now in zip(LIMITS, saved, limits(), strict=True):
        if now != before:
            try:
                resource.setrlimit(limit, before)
            except (ValueError, OSError):
                # A hard limit that was lowered stays so.
                raise NotRestored("resource limits") from None


#: The numbers of the calls ioprio_get and ioprio_set, which the C library does not have.
IO_PRIORITY = {"x86_64": (252, 251), "aarch64": (31, 30)}.get(platform.machine())
#: Of the caller.
IO_WHO = (1, 0)


def scheduling() -> Any:
    return (
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
        os.sched_getscheduler(0),
        _libc.syscall(IO_PRIORITY[0], *IO_WHO) if IO_PRIORITY else 0,
    )


def restore_scheduling(saved: Any) -> None:
    if scheduling() == saved:
        return
    priority, processors, policy, io_priority = saved
    try:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, os.sched_param(0))
        os.sched_setaffinity(0, processors)
        os.setpriority(os.PRIO_PROCESS, 0, priority)
    except OSError:
        raise NotRestored("priority") from None
    if IO_PRIORITY:
        _libc.syscall(IO_PRIORITY[1], *IO_WHO, io_priority)


def session() -> Any:
    return os.getsid(0), os.getpgid(0), os.getresuid(), os.getresgid()


def restore_session(saved: Any) -> None:
    if session() != saved:
        raise NotRestored("session, process group or user")


#: What `prctl` gets and sets (`man 2 prctl`): whether a dump of memory is allowed, how late timers may be, privileges,
#: large pages; by the second kind of call the signal at the parent's end, and whose children orphans become.
VALUES = {
    "PR_SET_DUMPABLE": (3, 4),
    "PR_SET_TIMERSLACK": (30, 29),
    "PR_SET_NO_NEW_PRIVS": (39, 38),
    "PR_SET_THP_DISABLE": (42, 41),
}
PLACES = {"PR_SET_PDEATHSIG": (2, 1), "PR_SET_CHILD_SUBREAPER": (37, 36)}
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def attributes() -> list[int]:
    found = [_prctl(get, 0, 0, 0, 0) for get, _ in VALUES.values()]
    place = ctypes.c_int()
    for get, _ in PLACES.values():
        _prctl(get, ctypes.addressof(place), 0, 0, 0)
        found.append(place.value)
    return found


def restore_attributes(saved: list[int]) -> None:
    for (name, (_, put)), before, now in zip({**VALUES, **PLACES}.items(), saved, attributes(), strict=True):
        if now != before and _prctl(put, before, 0, 0, 0) != 0:
            raise NotRestored(name)
