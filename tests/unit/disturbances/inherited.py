"""What the kernel and the C library keep for a process."""

import ctypes
import datetime
import os
import resource
import signal
import time
from pathlib import Path

from dagster_stack.pool.isolation import inherited
from tests.unit.disturbances import child, disturbance

LIBC = ctypes.CDLL(None)


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


@disturbance("umask", inherited.umask)
def change_umask(_: Path) -> None:
    os.umask(0o777)


@disturbance("resource limits", lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
def lower_a_limit(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@disturbance("priority and processors", lambda: os.sched_getaffinity(0))
def use_one_processor(_: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@disturbance("process attributes", inherited.attributes)
def forbid_dumps(_: Path) -> None:
    LIBC.prctl(4, ctypes.c_ulong(0), 0, 0, 0)
    LIBC.prctl(29, ctypes.c_ulong(123456), 0, 0, 0)


@disturbance("process attributes", inherited.attributes)
def adopt_orphans_and_die_with_the_parent(_: Path) -> None:
    inherited._prctl(36, 1 - inherited.attributes()[-1], 0, 0, 0)
    inherited._prctl(1, signal.SIGHUP, 0, 0, 0)


@disturbance("priority and processors", inherited.scheduling)
def read_disks_when_nobody_else_does(_: Path) -> None:
    if inherited.IO_PRIORITY:
        LIBC.syscall(inherited.IO_PRIORITY[1], 1, 0, 3 << 13)
