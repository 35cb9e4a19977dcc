"""This process as part of a service: where its events go, and in which form."""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from dagster_stack.logs.context import current
from dagster_stack.logs.lines import FORMATS, TEXT, Event, Lines, utc
from dagster_stack.settings import Settings

logger = logging.getLogger(__name__)

#: Names the service, where its program alone does not tell.
SERVICE_VARIABLE = "DAGSTER_STACK_SERVICE"
#: Invisible. Begins an event in what a step printed, where people look for it: the service's log has it already.
MARK = "\u2063"


class ServiceLog:
    """Writes events to a file descriptor of its own, which stays the same while a step's output is captured."""

    def __init__(self, service: str, lines: Lines, descriptor: int) -> None:
        self.service = service
        self._lines = lines
        self._descriptor = descriptor
        #: The descriptor of the running step's own log, if any.
        self._step: int | None = None
        #: Lines of a running step that are still to be written: each write wakes the engine, which takes a processor
        #: from the steps.
        self._pending: deque[str] = deque()
        self._at_once = False

    @property
    def is_copied(self) -> bool:
        return self._step is not None

    def add(self, event: Event) -> None:
        message, exception = event.message, event.exception
        line = self._lines.line(self._lines.head(event.fields), message, exception)
        self._put(f"{line}\n")
        if self._step is not None:
            if self._lines is not TEXT:
                line = TEXT.line(TEXT.head(event.fields), message, exception)
            write(self._step, f"{MARK}{line}\n")

    def add_output(self, action: str, data: bytes) -> None:
        """What a step printed, as events: one a line. Events in it are skipped."""
        fields = {"time": utc(time.time()), "level": "INFO", "service": self.service}
        head = self._lines.head({**fields, **current(), "action": action})
        lines = []
        for printed in data.decode(errors="backslashreplace").removesuffix("\n").split("\n"):
            text, mark, _ = printed.partition(MARK)
            if text or not mark:
                # Of a progress bar what a terminal would show in the end.
                lines.append(self._lines.line(head, text.rstrip("\r").rpartition("\r")[2]) + "\n")
        self._put("".join(lines))

    def flush(self) -> None:
        """Write what a running step's events have left to be written."""
        lines = []
        # Other threads may add some meanwhile; only one at a time takes them.
        while self._pending:
            lines.append(self._pending.popleft())
        if lines:
            write(self._descriptor, "".join(lines))

    def _put(self, text: str) -> None:
        self._pending.append(text)
        if self._step is None or self._at_once:
            self.flush()

    def after_fork(self) -> None:
        """In a child: what waits is its parent's, and a step's child has nobody who flushes."""
        self._pending.clear()
        self._at_once = self._step is not None

    @contextmanager
    def copied(self, descriptor: int) -> Iterator[None]:
        """While it lasts, events are also written there, as text."""
        before = self._step
        self._step = descriptor
        try:
            yield
        finally:
            self._step = before
            if self._step is None:
                self.flush()


class ServiceHandler(logging.Handler):
    """Hands records to the service's log; `of_dagster` those of runs, which have passed Dagster's own handler."""

    def __init__(self, log: ServiceLog, of_dagster: bool = False, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._log = log
        self._of_dagster = of_dagster

    def emit(self, record: logging.LogRecord) -> None:
        if not self._of_dagster and hasattr(record, "dagster_meta"):
            # On its way through the hierarchy: Dagster has handed it to its console, which is here too.
            return
        try:
            self._log.add(Event(record, self._log.service))
        except Exception:
            self.handleError(record)


_active: ServiceLog | None = None


def _after_fork() -> None:
    if _active:
        _active.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def active() -> ServiceLog | None:
    """The log of the service that this process belongs to; None outside of the stack, as in tests."""
    return _active


def configure(
    service: str, level: int = logging.INFO, stream: TextIO | None = None, environment: Mapping[str, str] = os.environ
) -> ServiceLog:  # fmt: skip
    """Let all loggers of this process write events to `stream`, else to standard output; raises SettingsError.

    The variable DAGSTER_STACK_SERVICE, when it is set, wins over `service`.
    """
    global _active  # noqa: PLW0603
    name = environment.get(SERVICE_VARIABLE) or service
    form = FORMATS[Settings.from_environment(environment).log_format]
    _active = ServiceLog(name, form, os.dup((stream or sys.stdout).fileno()))
    root = logging.getLogger()
    root.handlers[:] = [ServiceHandler(_active, level=level)]
    root.setLevel(level)
    logging.captureWarnings(True)
    # Its lines repeat what the migration says itself.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    return _active


def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends this process, as an event."""
    if issubclass(kind, Exception):
        logger.critical("the process ends", exc_info=(kind, error, trace), extra={"action": "process.failed"})
    else:
        sys.__excepthook__(kind, error, trace)


def uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not issubclass(arguments.exc_type, SystemExit):
        logger.error(
            "thread %s ends", arguments.thread and arguments.thread.name,
            exc_info=(arguments.exc_type, arguments.exc_value, arguments.exc_traceback),
            extra={"action": "thread.failed"},
        )  # fmt: skip


def write(descriptor: int, text: str) -> None:
    """All of it; a pipe may take less at once."""
    data = text.encode(errors="backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]
