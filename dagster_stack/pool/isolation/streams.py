"""A process's streams, their descriptors, and how many more are open."""

import os
import resource
import sys
from contextlib import suppress
from typing import Any

from dagster_stack.errors import NotRestored

STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
#: How a stream of text writes; `reconfigure` sets these.
FORM = ("encoding", "errors", "line_buffering", "write_through")


def file_of(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def streams() -> Any:
    """The streams, how they write, and copies of the first three descriptors, with the file behind each."""
    found = [getattr(sys, name) for name in STREAMS]
    forms = [{name: getattr(stream, name, None) for name in FORM} for stream in found[:3]]
    copies = []
    for descriptor in range(3):
        # A process may be started without one of them.
        with suppress(OSError):
            copies.append((descriptor, os.dup(descriptor), file_of(descriptor), os.get_blocking(descriptor)))
    return found, [getattr(stream, "buffer", None) for stream in found], forms, copies


def restore_streams(saved: Any) -> None:
    found, buffers, forms, copies = saved
    for name, stream in zip(STREAMS, found, strict=True):
        present = getattr(sys, name)
        setattr(sys, name, stream)
        # One that the step has put around the buffer of ours would close that, and the descriptor, when it goes.
        with suppress(Exception):
            if present is not stream and present.buffer in buffers:
                present.detach()
    present = None
    while copies:
        _restore_descriptor(*copies.pop())
    for place, (stream, form) in enumerate(zip(found[:3], forms, strict=True)):
        if _is_closed(stream):
            mode = "w" if place else "r"
            opened = open(place, mode, closefd=False, encoding=form["encoding"], errors=form["errors"])  # noqa: SIM115
            for name, each in zip(STREAMS, found, strict=True):
                if each is stream:
                    setattr(sys, name, opened)
        elif form != {name: getattr(stream, name, None) for name in FORM} and hasattr(stream, "reconfigure"):
            stream.reconfigure(**form)


def _is_closed(stream: Any) -> bool:
    try:
        return bool(getattr(stream, "closed", False))
    except ValueError:
        # It was detached.
        return True


def _restore_descriptor(descriptor: int, copy: int, file: tuple[int, int], blocks: bool) -> None:
    try:
        if file_of(copy) != file:
            raise NotRestored("descriptors")
    except OSError:
        # The step has closed all that there is: the process's connections too.
        raise NotRestored("descriptors") from None
    try:
        is_same = file_of(descriptor) == file
    except OSError:
        is_same = False
    if not is_same:
        os.dup2(copy, descriptor)
    # Of the open file itself, which other processes may have too.
    os.set_blocking(copy, blocks)
    os.close(copy)


def check_open_files(_: None) -> None:
    # The lowest free number: no list of thousands is to be read.
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    if lowest > resource.getrlimit(resource.RLIMIT_NOFILE)[0] / 2:
        raise NotRestored(f"{lowest} open files")
