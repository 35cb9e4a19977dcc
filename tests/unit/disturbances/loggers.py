"""Loggers and warnings."""

import logging
import warnings
from pathlib import Path
from typing import Any

from tests.unit.disturbances import disturbance

#: As user code sees them, which does not ask for types.
any_logging: Any = logging


OF_THE_PLATFORM = logging.getLogger("dagster_stack.pool.isolation")


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
