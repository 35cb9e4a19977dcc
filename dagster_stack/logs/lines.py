"""The two forms of a line: text for people, JSON for programs that collect logs."""

import json
import logging
import time
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Protocol
from urllib.parse import quote

from dagster_stack.logs.context import FIELDS, current
from dagster_stack.texts import MOST_TEXT, cut

#: Stands in a text line where what was said has a new line, as in a traceback.
NEW_LINE = " ⏎ "
#: Actions of events that say themselves what they are, by their message before it is filled in.
KNOWN_ACTIONS: dict[str, str] = {}
#: Dagster's kinds of events whose names are not made of theirs.
EVENT_ACTIONS = {
    "STEP_START": "step.started",
    "STEP_SUCCESS": "step.succeeded",
    "STEP_FAILURE": "step.failed",
    "PIPELINE_START": "run.started",
    "PIPELINE_SUCCESS": "run.succeeded",
    "PIPELINE_FAILURE": "run.failed",
    "PIPELINE_CANCELED": "run.canceled",
}
#: Everything that is not printed as it is: terminals act on it, and one of them may end a line.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {
    ord("\t"): "\t",
    ord("\n"): NEW_LINE,
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class Lines(Protocol):
    """A form of lines. `head` is what many lines may share, `line` completes it, without the line's end."""

    def head(self, fields: Mapping[str, str]) -> str: ...

    def line(self, head: str, message: str, exception: str | None = None) -> str: ...


class TextLines:
    """`time level service name=value … message`; the logger's name stands in for an action that is missing."""

    def head(self, fields: Mapping[str, str]) -> str:
        names = (*FIELDS, "action" if "action" in fields else "logger")
        pairs = "".join(f" {name}={word(fields[name])}" for name in names if name in fields)
        return f"{fields['time']} {fields['level']} {fields['service']}{pairs} "

    def line(self, head: str, message: str, exception: str | None = None) -> str:
        text = f"{message}\n{exception}" if exception else message
        return head + (text if text.isprintable() else one_line(text))


class JsonLines:
    """One object a line, with the keys of `head` that have a value, then `message` and `exception`."""

    def head(self, fields: Mapping[str, str]) -> str:
        return f"{encode(fields)[:-1]}, "

    def line(self, head: str, message: str, exception: str | None = None) -> str:
        rest = f', "exception": {encode_basestring(exception)}' if exception else ""
        return f'{head}"message": {encode_basestring(message)}{rest}}}'


#: `json.dumps` would make an encoder for each call.
encode = json.JSONEncoder(ensure_ascii=False).encode
TEXT = TextLines()
#: By the values of the setting LOG_FORMAT.
FORMATS: dict[str, Lines] = {"text": TEXT, "json": JsonLines()}


def one_line(text: str) -> str:
    return text.rstrip("\n").replace("\r\n", "\n").translate(CONTROL)


def word(value: str) -> str:
    """A value without blanks: ids of foreign messages may hold anything."""
    return value if value.isprintable() and " " not in value else quote(value)


def utc(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    milliseconds = int(seconds * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Event:
    """What a record says, by the names that a line has for it."""

    def __init__(self, record: logging.LogRecord, service: str) -> None:
        self._record = record
        extra: Mapping[str, Any] = record.__dict__
        self._dagster: Mapping[str, Any] | None = extra.get("dagster_meta")
        ids = {**ids_of(extra.get("data")), **current(), **self._ids_of_dagster}
        action = (
            extra.get("action")
            or (self._dagster_event and event_action(self._dagster_event.event_type_value))
            or KNOWN_ACTIONS.get(record.msg if isinstance(record.msg, str) else "")
        )
        self.fields = {
            "time": utc(record.created),
            "level": record.levelname,
            "service": service,
            "logger": record.name,
            **{name: ids[name] for name in FIELDS if name in ids},
            **({"action": str(action)} if action else {}),
        }

    @property
    def message(self) -> str:
        if self._dagster is not None:
            # Without job, run, process, step and kind, which Dagster puts before it for people.
            return cut(str(self._dagster["orig_message"]), MOST_TEXT)
        return cut(self._record.getMessage(), MOST_TEXT)

    @property
    def exception(self) -> str | None:
        """The traceback, if there is one."""
        record = self._record
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        event = self._dagster_event
        error = event and getattr(event.event_specific_data, "error", None)
        found = (record.exc_text, record.stack_info, error and error.to_string())
        return cut("\n".join(text.rstrip("\n") for text in found if text), MOST_TEXT) or None

    @property
    def _dagster_event(self) -> Any:
        return self._dagster["dagster_event"] if self._dagster is not None else None

    @property
    def _ids_of_dagster(self) -> dict[str, str]:
        found = self._dagster or {}
        ids = {"run": found.get("run_id"), "step": found.get("step_key")}
        return {name: value for name, value in ids.items() if value}


def ids_of(data: Any) -> dict[str, str]:
    """The ids in what Celery says of a task of this stack: a message shows its run in place of its arguments."""
    if not isinstance(data, Mapping) or "id" not in data:
        return {}
    run = str(data.get("args") or "")
    return {"task": str(data["id"]), **({"run": run} if is_id(run) else {})}


def is_id(text: str) -> bool:
    """Whether a text looks like the id of a run."""
    return len(text) == 36 and text.count("-") == 4 and text.replace("-", "").isalnum()


@lru_cache(maxsize=256)
def event_action(kind: str) -> str:
    """The action of a kind of Dagster's events: `step.output` for STEP_OUTPUT."""
    return EVENT_ACTIONS.get(kind) or kind.lower().replace("pipeline_", "run_").replace("_", ".", 1)
