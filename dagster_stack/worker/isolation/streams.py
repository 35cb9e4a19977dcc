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
    return found, forms, copies


def restore_streams(saved: Any) -> None:
    found, forms, copies = saved
    while copies:
        descriptor, copy, file, blocks = copies.pop()
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
    for place, (stream, form) in enumerate(zip(found[:3], forms, strict=True)):
        if getattr(stream, "closed", False):
            mode = "w" if place else "r"
            found[place] = open(place, mode, closefd=False, encoding=form["encoding"])  # noqa: SIM115
        elif form != {name: getattr(stream, name, None) for name in FORM} and hasattr(stream, "reconfigure"):
            stream.reconfigure(**form)
    for name, stream in zip(STREAMS, found, strict=True):
        setattr(sys, name, stream)


def check_open_files(_: None) -> None:
    # The lowest free number: no list of thousands is to be read.
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    if lowest > resource.getrlimit(resource.RLIMIT_NOFILE)[0] / 2:
        raise NotRestored(f"{lowest} open files")
