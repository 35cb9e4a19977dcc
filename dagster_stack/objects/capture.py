"""Captures what the process prints: stdout and stderr go into files, and also where they went before."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from dagster_stack.forks import own_children
from dagster_stack.logs.service import ServiceLog, active
from dagster_stack.objects import pump

#: Bytes that are copied at once, and of them those that become lines of a service's log.
CHUNK, LINES_CHUNK = 1 << 20, 1 << 16
#: Bytes and lines of a step's stream that go to the service's log, which other lines must not be lost in.
MOST_LOGGED_BYTES, MOST_LOGGED_LINES = 5_000_000, 20_000


class Pump:
    """The program that brings what is printed into files: the one of this process's worker, or one of its own."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it is there; the processes that are forked from this one share it."""
        if not self.is_gone:
            return
        if self._socket:
            self._socket.close()
        if self._process:
            own_children.discard(self._process.pid)
            with suppress(subprocess.TimeoutExpired):
                # Its socket is closed a moment before it has ended.
                self._process.wait(1)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            # Without site-packages: 5 MB, 15 ms. In a session of its own, for no terminal's interrupt concerns it.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", pump.__file__, str(there.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[there.fileno()], start_new_session=True, cwd="/",
            )  # fmt: skip
        own_children.add(self._process.pid)
        self._socket = here

    @property
    def is_gone(self) -> bool:
        """Whether it was killed."""
        try:
            return not self._socket or not self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def move(self, streams: "Sequence[CapturedStream]", most: int) -> None:
        """Let it move what is printed on streams to their files; another one when it was killed."""
        self.start()
        assert self._socket
        pump.ask(self._socket, [(stream.reader, stream.file) for stream in streams], most)
        for stream in streams:
            stream.moved_by = self._socket

    def still_moves(self, stream: "CapturedStream") -> bool:
        return stream.moved_by is self._socket and not self.is_gone


PUMP = Pump()


class CapturedStream:
    """A stream of this process that goes through a pipe into a file. `forward` copies what is new in the file: line by
    line to a service's log, as events of an action; where there is none, to where the stream went before.

    Works on the file descriptor, so that libraries in C and subprocesses are captured too. A pair of `tail`
    processes for each step, as Dagster starts them, takes 20 ms.
    """

    def __init__(
        self, stream: TextIO, file: Path, most: int, log: ServiceLog | None = None, action: str = ""
    ) -> None:
        self._stream = stream
        self._most = most
        self._log = log
        self._action = action
        self._descriptor = descriptor_of(stream)
        self._owner = os.getpid()
        self.file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.reader, self.writer = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(self.writer, pump.SET_PIPE_SIZE, pump.PIPE_BYTES)
        self._before = os.dup(self._descriptor)
        self._forwarded = 0
        self._lines_left = MOST_LOGGED_LINES
        #: Stands for the pump that has it.
        self.moved_by: socket.socket | None = None

    @property
    def size(self) -> int:
        """Bytes that are kept so far."""
        return os.fstat(self.file).st_size

    @property
    def is_cut(self) -> bool:
        return self.size > self._most

    def begin(self) -> None:
        self._flush()
        os.dup2(self.writer, self._descriptor)

    def restore(self) -> None:
        """The stream goes where it went before."""
        self._flush()
        os.dup2(self._before, self._descriptor)

    def forward(self, ended: bool = False) -> None:
        """Copy what is new; to a service's log without a line that has no end yet, unless the stream has `ended`."""
        if not ended and not PUMP.still_moves(self):
            # Without a reader, printing would block.
            PUMP.move([self], self._most)
        # Not left to the pump, for which this process would have to wait.
        pump.Flow(self.reader, self.file, self._most).drain()
        if self._log:
            self._log_lines(self._log, ended)
            self._log.flush()
        else:
            while chunk := os.pread(self.file, CHUNK, self._forwarded):
                self._forwarded += len(chunk)
                while chunk:
                    chunk = chunk[os.write(self._before, chunk) :]

    def _log_lines(self, log: ServiceLog, ended: bool) -> None:
        while self._lines_left and (chunk := os.pread(self.file, LINES_CHUNK, self._forwarded)):
            lines = chunk.rfind(b"\n") + 1
            if not lines and len(chunk) == LINES_CHUNK:
                # A line longer than a chunk is cut.
                chunk = os.pread(self.file, CHUNK, self._forwarded)
                lines = chunk.find(b"\n") + 1
            if not lines and not ended and len(chunk) < CHUNK:
                return
            chunk = chunk[: lines or CHUNK]
            self._forwarded += len(chunk)
            log.add_output(self._action, chunk)
            self._lines_left = max(0, self._lines_left - chunk.count(b"\n"))
            if not self._lines_left or self._forwarded > MOST_LOGGED_BYTES:
                self._lines_left = 0
                log.add_output(self._action, b"[dagster-stack: what it prints further is in Dagit alone]")

    def close(self) -> None:
        """All that was printed is in the file, and forwarded. A forked child of the step has no part in it."""
        try:
            if os.getpid() == self._owner:
                self.forward(ended=True)
        finally:
            for descriptor in (self._before, self.file, self.reader, self.writer):
                os.close(descriptor)

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
def captured(
    stdout: Path, stderr: Path, most: int = 1 << 62
) -> Iterator[tuple[CapturedStream, CapturedStream]]:
    """Both streams of this process, written to these files while the context lasts; stderr has its events too.

    Of each stream the file gets `most` bytes, and a line that says so.
    """
    for file in (stdout, stderr):
        file.parent.mkdir(parents=True, exist_ok=True)
    log = active()
    # Within another capture: to its files, which come to the log.
    outermost = None if log and log.is_copied else log
    with ExitStack() as stack:
        out = CapturedStream(sys.stdout, stdout, most, outermost, "step.stdout")
        stack.callback(out.close)
        err = CapturedStream(sys.stderr, stderr, most, outermost, "step.stderr")
        stack.callback(err.close)
        PUMP.move([out, err], most)
        for stream in (out, err):
            stack.callback(stream.restore)
            stream.begin()
        if log:
            stack.enter_context(log.copied(err.writer))
        yield out, err
