"""Which code location something belongs to. Of several, no two ever meet in one process: neither modules nor `sys.path`
nor variables. Without Dagster, for a worker's small processes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from dagster_stack.errors import ProjectError
from dagster_stack.project import found

if TYPE_CHECKING:
    from dagster import DagsterRun

#: Hexadecimal digits that tell apart what is in no location.
LENGTH = 12


@cache
def several() -> bool:
    """Whether this project has more code locations than one."""
    try:
        return len(found().locations) > 1
    except ProjectError:
        # Whoever serves it says so.
        return False


def location_of(run: "DagsterRun") -> str:
    """The name of the location that a run's code is in, in a project of several; empty in any other.

    Code in no location, as of `execute_job` in a script, has a name of its own.
    """
    if not several():
        return ""
    origin = run.remote_job_origin
    if origin and any(each.name == origin.location_name for each in found().locations):
        return origin.location_name
    if not run.job_code_origin:
        return ""
    from dagster._serdes import pack_value

    pointer: Any = run.job_code_origin.repository_origin.code_pointer
    return _digest(pack_value(pointer))


def location_of_message(content: Any) -> str:
    """The same for what a task gets: a message of this stack, or one of dagster-celery with a packed origin."""
    if isinstance(content, Mapping):
        if isinstance(location := content.get("location"), str):
            return location
        if pointer := content.get("code_pointer"):
            return _digest(pointer)
        content = list(content.values())
    if isinstance(content, Sequence) and not isinstance(content, str):
        return next(filter(None, map(location_of_message, content)), "")
    return ""


def _digest(pointer: object) -> str:
    text = json.dumps(pointer, sort_keys=True, default=str)
    return f"code {hashlib.sha256(text.encode()).hexdigest()[:LENGTH]}"
