"""A program of its own, one a worker: brings what steps print from pipes into files, of each stream the beginning.

Whoever prints never waits for the process whose step it is: that may hold Python's global lock in a long call while
a program that it called prints. Files have an end; what is beyond it is read and dropped.
"""

import _socket
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

#: Bytes that a pipe holds, where the kernel allows it, and that are moved at once.
PIPE_BYTES = 1 << 18
#: `F_SETPIPE_SZ` of Linux.
SET_PIPE_SIZE = 1031
#: Milliseconds between two looks at a pipe in which there is little: each wakes this program, and most steps have ended
#: by then. What the pipe can't hold meanwhile waits as long.
REST_MS = 20
#: What a note in a file takes at most.
NOTE_BYTES = 200
#: Begins the note where a file could not take what was printed.
NOT_KEPT = b"[dagster-stack: the output that follows could not be kept"


class Flow:
    """One stream on its way from a pipe to a file, which gets at most so many bytes, then a line that says so.

    A lock of the file is held from the read to the write: two processes may move what one prints.
    """

    def __init__(self, pipe: int, file: int, most: int) -> None:
        self.pipe, self.file, self._most = pipe, file, most
        self._is_full = False
        os.set_blocking(pipe, False)

    def move(self) -> int | None:
        """Move what is there, a pipe's content at most; None at the end of it."""
        try:
            flock(self.file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return 0
        try:
            return self._move()
        finally:
            flock(self.file, LOCK_UN)

    def drain(self) -> None:
        """What is in the pipe now, for who may read the file too; not what a program that goes on adds without an end."""
        flock(self.file, LOCK_EX)
        size = os.fstat(self.file).st_size
        self._is_full = NOT_KEPT in os.pread(self.file, NOTE_BYTES, max(0, size - NOTE_BYTES))
        left = PIPE_BYTES * 4
        while left > 0 and (moved := self._move()):
            left -= moved
        flock(self.file, LOCK_UN)

    def close(self) -> None:
        os.close(self.pipe)
        os.close(self.file)

    def _move(self) -> int | None:
        try:
            data = os.read(self.pipe, PIPE_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            return None
        found = os.fstat(self.file)
        # What is printed on after its step has ended, and its file has been brought away, is nobody's.
        if not self._is_full and found.st_size <= self._most and found.st_nlink:
            try:
                self._keep(data, self._most - found.st_size)
            except OSError as error:
                self._is_full = True
                with suppress(OSError):
                    os.ftruncate(self.file, max(0, os.fstat(self.file).st_size - NOTE_BYTES))
                    self._note(NOT_KEPT + f": {error.strerror}]".encode())
        return len(data)

    def _keep(self, data: bytes, room: int) -> None:
        kept = memoryview(data)[:room]
        while kept:
            kept = kept[os.write(self.file, kept) :]
        if len(data) > room:
            note = f"[dagster-stack: the first {self._most:,} bytes are kept, what follows is left out]"
            self._note(note.encode())

    def _note(self, text: bytes) -> None:
        os.write(self.file, b"\n%s\n" % text)


class Server:
    """Serves all processes that have the other end of a socket, until none has it or prints any more."""

    def __init__(self, socket: "_socket.socket") -> None:
        self._socket = socket
        self._poll = select.poll()
        self._poll.register(socket.fileno(), select.POLLIN)
        self._flows: dict[int, Flow] = {}
        #: Pipes that are not looked at, and since when the first of them is not.
        self._resting: list[int] = []
        self._rest_began = 0.0

    def run(self) -> None:
        is_open = True
        while is_open or self._flows:
            for descriptor, _ in self._poll.poll(REST_MS if self._resting else None):
                if descriptor == self._socket.fileno():
                    is_open = self._begin()
                else:
                    self._move(descriptor)
            if self._resting and time.monotonic() - self._rest_began > REST_MS / 1000:
                for descriptor in self._resting:
                    self._poll.register(descriptor, select.POLLIN)
                self._resting = []

    def _rest(self, descriptor: int) -> None:
        if not self._resting:
            self._rest_began = time.monotonic()
        self._resting.append(descriptor)

    def _begin(self) -> bool:
        """Take pipe and file of each stream of a capture; False when no process can ask any more."""
        message, attached, _, _ = self._socket.recvmsg(64, _socket.CMSG_SPACE(4 * 4))
        if not message:
            self._poll.unregister(self._socket.fileno())
            return False
        data = attached[0][2] if attached else b""
        numbers = [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]
        for pipe, file in zip(numbers[::2], numbers[1::2], strict=True):
            # Opened by itself, it has a lock of its own.
            flow = Flow(pipe, os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_APPEND), int(message))
            os.close(file)
            self._flows[pipe] = flow
            self._rest(pipe)
        return True

    def _move(self, descriptor: int) -> None:
        moved = self._flows[descriptor].move()
        if moved is None:
            self._poll.unregister(descriptor)
            self._flows.pop(descriptor).close()
        elif moved < PIPE_BYTES // 4:
            self._poll.unregister(descriptor)
            self._rest(descriptor)


def ask(socket: "_socket.socket", flows: Sequence[tuple[int, int]], most: int) -> None:
    """Let the server at the other end of a socket move from pipes to files; raises OSError without one."""
    data = b"".join(number.to_bytes(4, sys.byteorder) for flow in flows for number in flow)
    socket.sendmsg([str(most).encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)])


if __name__ == "__main__":
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It ends after the last of those that it serves.
        signal.signal(number, signal.SIG_IGN)
    Server(_socket.socket(fileno=int(sys.argv[1]))).run()
