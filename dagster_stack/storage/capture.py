"""What the process prints, into a file: stdout or stderr of everything in it, while it also goes where it went."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from dagster_stack.logs.service import ServiceLog, active

#: Bytes that are copied at once.
CHUNK = 1 << 20


class CapturedStream:
    """A stream of this process that is written to a file, and copied by `forward`: line by line to a service's log,
    as events of an action; without one to where the stream went before.

    Works on the file descriptor, so that libraries in C and subprocesses are captured too. A pair of `tail`
    processes for each step, as Dagster starts them, takes 20 ms.
    """

    def __init__(self, stream: TextIO, file: Path, log: ServiceLog | None = None, action: str = "") -> None:
        self._stream = stream
        self._log = log
        self._action = action
        self._descriptor = descriptor_of(stream)
        self.file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._before = os.dup(self._descriptor)
        self._forwarded = 0
        self._flush()
        os.dup2(self.file, self._descriptor)

    @property
    def size(self) -> int:
        """Bytes that were printed so far."""
        return os.fstat(self.file).st_size

    def forward(self, ended: bool = False) -> None:
        """Copy what is new; to a service's log without a line that has no end yet, unless the stream has `ended`."""
        self._copy(ended)
        if self._log:
            self._log.flush()

    def _copy(self, ended: bool) -> None:
        while chunk := os.pread(self.file, CHUNK, self._forwarded):
            if self._log:
                lines = chunk.rfind(b"\n") + 1
                if not lines and not ended and len(chunk) < CHUNK:
                    return
                # A line longer than a chunk is cut.
                chunk = chunk[: lines or CHUNK]
                self._forwarded += len(chunk)
                self._log.add_output(self._action, chunk)
            else:
                self._forwarded += len(chunk)
                while chunk:
                    chunk = chunk[os.write(self._before, chunk) :]

    def restore(self) -> None:
        """The stream goes where it went before; all of it is in the file and forwarded."""
        self._flush()
        os.dup2(self._before, self._descriptor)
        try:
            self.forward(ended=True)
        finally:
            os.close(self._before)
            os.close(self.file)

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
    """Both streams of this process, written to these files while the context lasts; stderr has its events too."""
    for file in (stdout, stderr):
        file.parent.mkdir(parents=True, exist_ok=True)
    log = active()
    # Within another capture: to its files, which come to the log.
    outermost = None if log and log.is_copied else log
    with ExitStack() as stack:
        out = CapturedStream(sys.stdout, stdout, outermost, "step.stdout")
        stack.callback(out.restore)
        err = CapturedStream(sys.stderr, stderr, outermost, "step.stderr")
        stack.callback(err.restore)
        if log:
            stack.enter_context(log.copied(err.file))
        yield out, err
