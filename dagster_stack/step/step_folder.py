"""The temporary folder of each step, which goes with it.

    <the system's folder for temporary files>/dagster-steps-<user id>/<process id>-<when that was started>-<number>/

A process that is killed leaves its folder behind: whichever process begins a step next removes what dead ones have left.
"""

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from uuid import uuid4

from dagster_stack.store import within
from dagster_stack.store.leases import Lease

logger = logging.getLogger(__name__)

#: What programs look at for the place of their temporary files.
VARIABLES = ("TMPDIR", "TEMP", "TMP")
#: Where dbt puts what it makes: each invocation of dagster-dbt has a folder of its own there. In the image they name the
#: second one, since the project's own `target/` is read-only; a project may name another.
DBT_VARIABLES, DBT_FOLDER = ("DBT_TARGET_PATH", "DBT_LOG_PATH"), "/tmp/dbt"
#: Where `/proc/<pid>/stat` says when a process was started, counted behind the process's name.
STARTED_AT = 19

_numbers = count(1)


@cache
def parent() -> Path:
    """Where the folders of all steps of this machine's (or container's) processes are."""
    return Path(tempfile.gettempdir()) / f"dagster-steps-{os.getuid()}"


@contextmanager
def step_folder(lease: Lease | None = None) -> Iterator[Path]:
    """An empty folder in which this process puts temporary files while it lasts; raises OSError without room for it.

    It is removed with all that is in it. `lease`: that of the step, for runs that it executes.
    """
    folder = _make()
    now = {**dict.fromkeys(VARIABLES, str(folder)), within.VARIABLE: within.to_text(lease) if lease else "1"}
    now |= {name: f"{folder}/dbt" for name in DBT_VARIABLES if os.environ.get(name) == DBT_FOLDER}
    before, variables = tempfile.tempdir, {name: os.environ.get(name) for name in now}
    tempfile.tempdir = str(folder)
    os.environ.update(now)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        # Here and not by `isolation`, which compares all variables only when there is a difference: 140 µs.
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        remove(folder)


def _make() -> Path:
    remove_dead()
    folder = parent() / f"{_name(os.getpid())}-{next(_numbers)}"
    try:
        folder.mkdir(0o700)
    except FileNotFoundError:
        # The first step of all, or one before it has emptied the system's folder.
        parent().mkdir(0o700, parents=True, exist_ok=True)
        if parent().lstat().st_uid != os.getuid() or not stat.S_ISDIR(parent().lstat().st_mode):
            raise PermissionError(f"{parent()} belongs to another user: remove it") from None
        folder.mkdir(0o700)
    return folder


def remove_dead() -> None:
    """Remove the folders of processes that are gone."""
    with suppress(FileNotFoundError):
        for name in os.listdir(parent()):
            pid, _, rest = name.partition("-")
            if pid.isdecimal() and started_at(int(pid)) != rest.partition("-")[0]:
                remove(parent() / name)


def started_at(pid: int) -> str | None:
    """When a process was started, in ticks since the machine was: together with its id it is never used twice."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()[STARTED_AT]


@lru_cache(maxsize=1)
def _name(pid: int) -> str:
    return f"{pid}-{started_at(pid)}"


def remove(folder: Path) -> None:
    """Remove a folder with whatever is in it, also what its owner may not write; links are removed, not followed."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        try:
            _remove_full(folder)
        except OSError as error:
            logger.warning(
                "%s can't be removed, which is tried again later: %s",
                folder,
                error,
                extra={"action": "folder.left"},
            )


def _remove_full(folder: Path) -> None:
    folder.chmod(0o700)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(folder)


def _empty(top: int) -> None:
    """Remove all that is in an open folder. What is deeper is moved up first, however deep: nothing is recursive."""
    names = os.listdir(top)
    while names:
        name = names.pop()
        if _unlinked(name, top):
            continue
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            for child in os.listdir(inner):
                if not _unlinked(child, inner):
                    names.append(uuid4().hex)
                    os.rename(child, names[-1], src_dir_fd=inner, dst_dir_fd=top)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    """Remove a file and return True; make a folder writable for this user and return False."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        # Not through the name, which may be a link by now.
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=folder)
        try:
            os.chmod(f"/proc/self/fd/{found}", 0o700)
        finally:
            os.close(found)
        return False
    return True
