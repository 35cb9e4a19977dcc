"""The log of a service in a file of a test, as a process of the stack sets it up; undone afterwards."""

import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dagster import _loggers
from dagster._core.definitions import instigation_logger

from dagster_stack.logs import service
from dagster_stack.logs.libraries import use_in_dagster


@dataclass(frozen=True)
class Written:
    """What the service has written so far."""

    file: Path

    @property
    def lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a log in JSON."""
        return [json.loads(line) for line in self.lines]

    def actions(self) -> list[str | None]:
        return [event.get("action") for event in self.events]


@contextmanager
def service_log(folder: Path, form: str, name: str = "worker") -> Iterator[Written]:
    """All loggers of this process write there while it lasts."""
    root, shown = logging.getLogger(), warnings.showwarning
    before = (root.handlers[:], root.level)
    written = Written(folder / f"{name}.log")
    with pytest.MonkeyPatch.context() as patch, written.file.open("w") as stream:
        for module in (sys, threading):
            patch.setattr(module, "excepthook", module.excepthook)
        for module in (_loggers, instigation_logger):
            patch.setattr(module, "create_console_logger", module.create_console_logger)
        patch.setattr(service, "_active", None)
        service.configure(name, stream=stream, environment={"LOG_FORMAT": form})
        use_in_dagster()
        try:
            yield written
        finally:
            root.handlers[:], level = before
            root.setLevel(level)
            logging.captureWarnings(False)
            warnings.showwarning = shown
            logging.getLogger("alembic").setLevel(logging.NOTSET)
