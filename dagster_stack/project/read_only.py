"""A write to the project's code, which can only be read: the error says where to write, at once."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster_stack.patches.dagster import BACKOFF
from dagster_stack.project.data import DATA, SETTING, VARIABLE
from dagster_stack.store import error_chains

#: The project's root, as this process starts.
ROOT = Path.cwd()
READ_ONLY = re.compile(r"\[Errno 30\]|Read-only file system|os error 30", re.IGNORECASE)
#: SQLite does not say of which file.
SQLITE = re.compile(r"unable to open database file|attempt to write a readonly database", re.IGNORECASE)
#: What belongs to another user, as the code does.
DENIED = re.compile(r"\[Errno 13\]|Permission denied|os error 13", re.IGNORECASE)
#: A path in an error's text.
QUOTED = re.compile(r"""(['"])(.+?)\1""")
CURE = (
    f"the project's folder is read-only here. Write below {DATA}/ in it ({ROOT / DATA}), which stays and which all workers"
    f" share, or name more such folders by {SETTING} in .env. What only this step needs goes to tempfile's folder."
)
#: No repetition cures it.
ABSENT = re.compile(r"No such file or directory", re.IGNORECASE)


def explain(text: str) -> str | None:
    """What an error of a write that can't be is to add; None elsewhere than in a container."""
    if VARIABLE not in os.environ:
        return None
    if READ_ONLY.search(text) or (DENIED.search(text) and _names_code(text)):
        return CURE
    # Any file may be meant.
    return f"If it lies beside the code: {CURE}" if SQLITE.search(text) else None


def _names_code(text: str) -> bool:
    volume = Path(os.environ[VARIABLE])
    paths = (Path(os.path.realpath(ROOT / name)) for _, name in QUOTED.findall(text))
    return any(path.is_relative_to(ROOT.resolve()) and not path.is_relative_to(volume) for path in paths)


def use_in_dagster() -> None:
    """Let errors of this process say it, and let nothing of Dagster's wait for such a write to come right.

    To be called before user code is loaded: DuckDB's resource would try for 102 s.
    """
    error_chains.use_in_dagster()
    if explain not in error_chains.explanations:
        error_chains.explanations.append(explain)
    if BACKOFF.found() is not impatient:
        _by_dagster.append(BACKOFF.replace(impatient))


_by_dagster: list[Callable[..., Any]] = []


def impatient(
    fn: Callable[..., Any], retry_on: Any, args: Any = None, kwargs: Any = None, **options: Any
) -> Any:
    """Dagster's own `backoff`, but for what no repetition cures."""
    try:
        return fn(*(args or ()), **(kwargs or {}))
    except retry_on as error:
        if explain(str(error)) or ABSENT.search(str(error)):
            raise
    return _by_dagster[0](fn, retry_on, args, kwargs, **options)
