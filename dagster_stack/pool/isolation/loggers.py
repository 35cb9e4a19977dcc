"""Loggers with their handlers, and warnings."""

import logging
import sys
import warnings
from itertools import chain
from operator import attrgetter
from typing import Any

from dagster_stack.pool.isolation.modules import loaded_since


def _loggers() -> list[logging.Logger]:
    known = list(logging.Logger.manager.loggerDict.values())
    return [logging.root, *(each for each in known if isinstance(each, logging.Logger))]


#: As functions in C: there are hundreds of loggers, most of which have neither handlers nor filters.
SETTINGS = attrgetter("level", "propagate", "disabled")
HANDLERS, FILTERS = attrgetter("handlers"), attrgetter("filters")
#: The state of a logger that was never set up.
AS_MADE = ((logging.NOTSET, True, False), (), ())


def _states(known: list[logging.Logger]) -> Any:
    return (
        list(map(SETTINGS, known)),
        list(map(tuple, map(HANDLERS, known))),
        list(map(tuple, map(FILTERS, known))),
    )


def loggers() -> Any:
    known = _loggers()
    states = _states(known)
    handlers = [
        (handler, handler.level, handler.formatter, handler.filters[:])
        for handler in chain.from_iterable(states[1])
    ]
    return known, states, handlers, logging.root.manager.disable, len(sys.modules)


def restore_loggers(saved: Any) -> None:
    known, states, handlers, disabled_below, count = saved
    for handler, level, formatter, filters in handlers:
        handler.level, handler.formatter, handler.filters[:] = level, formatter, filters
    present = _loggers()
    if present != known or _states(present) != states:
        before = dict(zip(known, zip(*states, strict=True), strict=True))
        # Those of modules that the step loaded stay as these have set them up, which they do once.
        loaded = loaded_since(count)
        for logger in present:
            if logger in before or logger.name not in loaded:
                settings, logger.handlers[:], logger.filters[:] = before.get(logger, AS_MADE)
                level, logger.propagate, logger.disabled = settings
                # Forgets for which levels loggers are enabled.
                logger.setLevel(level)
    if logging.root.manager.disable != disabled_below:
        logging.disable(disabled_below)


def catch_warnings() -> Any:
    kept = warnings.catch_warnings()
    kept.__enter__()
    return kept


def restore_warnings(kept: Any) -> None:
    kept.__exit__(None, None, None)
