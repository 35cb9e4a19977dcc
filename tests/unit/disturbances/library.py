"""Settings of the standard library."""

import calendar
import csv
import locale
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.unit.disturbances import disturbance


@disturbance("locale", lambda: (locale.setlocale(locale.LC_ALL), locale.str(1.5)))
def change_the_locale(_: Path) -> None:
    for name in ("C", "C.UTF-8", "POSIX"):
        if locale.setlocale(locale.LC_ALL) != name:
            with suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, name)
                return


@disturbance("socket timeout", socket.getdefaulttimeout)
def set_a_socket_timeout(_: Path) -> None:
    socket.setdefaulttimeout(0.001)


@disturbance("stack of threads", threading.stack_size)
def change_the_stack_of_threads(_: Path) -> None:
    threading.stack_size(1 << 20)


@disturbance("field size of CSV", csv.field_size_limit)
def allow_long_fields(_: Path) -> None:
    csv.field_size_limit(sys.maxsize)


@disturbance("first weekday", lambda: calendar.monthcalendar(2026, 11))
def begin_weeks_on_sunday(_: Path) -> None:
    calendar.setfirstweekday(6)
