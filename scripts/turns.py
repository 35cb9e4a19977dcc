"""One command at a time changes the containers of a stack; others wait for their turn.

The lock is the kernel's, so that of a process that was killed is free.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path

from scripts import compose, env_file
from scripts.console import BUILD_FOLDER, Failure, say

#: Seconds between two tries, and after which it is said who is waited for.
TRY_SECS, TELL_SECS = 0.1, 2


def file(name: str) -> Path:
    return BUILD_FOLDER / compose.project() / name


def alone(entry: Callable[[], int | None], name: str = "") -> Callable[[], int | None]:
    """A make target that changes containers, once no other one does; its name, where the function has another one."""

    @wraps(entry)
    def act() -> int | None:
        with turn(f"make {name or entry.__name__}"):
            return entry()

    return act


@contextmanager
def turn(holder: str) -> Iterator[None]:
    """Wait until no other command changes containers; in here none does."""
    try:
        lock = awaited(holder)
    except OSError:
        # A folder that is closed to this user, or can only be read: the command itself says so, with what else is wrong.
        yield
        return
    try:
        yield
    finally:
        os.close(lock)


def awaited(holder: str) -> int:
    """The lock once it is free; says who is waited for."""
    began, is_told = time.monotonic(), False
    while (lock := taken(file("turn"), holder)) is None:
        if not is_told and time.monotonic() - began > TELL_SECS:
            say(f"Waiting until `{held_by(file('turn'))}` ends")
            is_told = True
        time.sleep(TRY_SECS)
    return lock


@contextmanager
def turn_if_free(holder: str) -> Iterator[str]:
    """The same without a wait: gives the name of the command that is at work, else an empty text."""
    lock = taken(file("turn"), holder)
    try:
        yield held_by(file("turn")) if lock is None else ""
    finally:
        if lock is not None:
            os.close(lock)


def hold(name: str, holder: str, refusal: str) -> None:
    """Keep a lock of this name as long as this process lives; raises Failure with this text where another one has it."""
    if taken(file(name), holder) is None:
        raise Failure(refusal.format(holder=held_by(file(name))))


def keep_for_successor(holder: str) -> None:
    """Wait for the turn and keep it: a program that takes this process's place has it until it ends."""
    with suppress(OSError):
        os.set_inheritable(awaited(holder), True)


def taken(path: Path, holder: str) -> int | None:
    """The lock, open, with its holder's name in it; None while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if env_file.env_path().exists():
        for each in (path.parent.parent, path.parent, path):
            env_file.give(each, like=env_file.env_path())
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.truncate(lock, 0)
    os.write(lock, holder.encode())
    return lock


def held_by(path: Path) -> str:
    """Who took it last."""
    return path.read_text(encoding="utf-8") or "another command"
