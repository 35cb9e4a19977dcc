"""What the process prints, into a file: stdout or stderr of everything in it, while it also goes where it went."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

#: Bytes that are copied at once.
CHUNK = 1 << 20


class CapturedStream:
    """A stream of this process that is written to a file, and copied to where it went before by `forward`.

    Works on the file descriptor, so that libraries in C and subprocesses are captured too. A pair of `tail`
    processes for each step, as Dagster starts them, takes 20 ms.
    """

    def __init__(self, stream: TextIO, file: Path) -> None:
        self._stream = stream
        self._descriptor = descriptor_of(stream)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._before = os.dup(self._descriptor)
        self._forwarded = 0
        self._flush()
        os.dup2(self._file, self._descriptor)

    def forward(self) -> int:
        """Copy what is new to where the stream went before; returns the size of the file in bytes."""
        while chunk := os.pread(self._file, CHUNK, self._forwarded):
            self._forwarded += len(chunk)
            while chunk:
                chunk = chunk[os.write(self._before, chunk) :]
        return self._forwarded

    def restore(self) -> None:
        """The stream goes where it went before; all of it is in the file and forwarded."""
        self._flush()
        os.dup2(self._before, self._descriptor)
        try:
            self.forward()
        finally:
            os.close(self._before)
            os.close(self._file)

    def _flush(self) -> None:
        # User code may have closed it: its descriptor is another matter.
        with suppress(ValueError):
            self._stream.flush()


def descriptor_of(stream: TextIO) -> int:
    """The file descriptor behind a stream; the standard one when user code replaced it by something without."""
    try:
        return stream.fileno()
    except (OSError, AttributeError, ValueError):
        return 1 if stream is sys.stdout else 2


@contextmanager
def captured(stdout: Path, stderr: Path) -> Iterator[tuple[CapturedStream, CapturedStream]]:
    """Both streams of this process, written to these files while the context lasts."""
    for file in (stdout, stderr):
        file.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        out = CapturedStream(sys.stdout, stdout)
        stack.callback(out.restore)
        err = CapturedStream(sys.stderr, stderr)
        stack.callback(err.restore)
        yield out, err
