"""Parts of py-amqp: a message that it can't read ends one worker after the other, since it comes again."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dagster_stack.patches.part import Part

logger = logging.getLogger(__name__)

# fmt: off
_amqp = partial(Part, read="amqp 5.4.2", upstream="https://github.com/celery/py-amqp/issues/277")

SHORT_TEXT = _amqp("amqp.serialization:pstr_t", "s",
    "it raises for a text that is not UTF-8, such as a strange content type.")
PROPERTY_CLASSES = _amqp("amqp.serialization:PROPERTY_CLASSES", "dict of 60",
    "what reads a message's properties raises for a date past the year 9999 and for a table that is too deep.")
# fmt: on

#: Reads properties from a buffer at an offset; returns them and the offset behind them.
PropertyReader = Callable[[Any, int], tuple[dict[str, Any], int]]


def tolerate_unreadable() -> None:
    """Let messages whose properties can't be read have none in this process. Twice does no harm."""
    SHORT_TEXT.replace(readable)
    readers: Mapping[int, PropertyReader] = PROPERTY_CLASSES.found()
    PROPERTY_CLASSES.replace({kind: tolerant(read) for kind, read in readers.items()})


def readable(text: Any) -> str:
    """A short text of AMQP's, whatever bytes it is made of."""
    return text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)


def tolerant(read: PropertyReader) -> PropertyReader:
    """The same reader, which reads nothing where it would raise."""

    def read_properties(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:
        try:
            return read(buffer, offset)
        except Exception:
            logger.warning(
                "a message's properties can't be read", exc_info=True, extra={"action": "message.unreadable"}
            )
            return {}, len(buffer)

    return read_properties
