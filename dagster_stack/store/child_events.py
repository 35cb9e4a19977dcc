"""Events that forked children of this process report: they come through a socket, and this process stores them.

A child that wrote them itself would need connections of its own, and its writes would count as this process's.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from dagster._core.events.log import EventLogEntry
from dagster._serdes import deserialize_value, serialize_value

from dagster_stack.errors import Fenced
from dagster_stack.logs.context import in_context

#: Bytes of an event that go in one piece; more goes as a file without a name, by its descriptor.
IN_ONE_PIECE = 60_000


class ChildEvents:
    """One end for this process, which hands what comes to `store`; one for all its children, through forks."""

    def __init__(self, store: Callable[[EventLogEntry], None]) -> None:
        self._store = store
        # Each event is one message: those of several children don't mix, and one that is killed leaves none half.
        self._ours, self._childrens = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reading = threading.RLock()
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=in_context(self._read), name="child-events", daemon=True)
        self._thread.start()

    def send(self, event: EventLogEntry) -> None:
        """In a child: returns when its parent has the event, as good as stored; raises Fenced without a parent."""
        data = serialize_value(event).encode()
        try:
            if len(data) <= IN_ONE_PIECE:
                self._childrens.send(data)
                return
            file = os.memfd_create("event")
            try:
                with os.fdopen(os.dup(file), "wb") as whole:
                    whole.write(data)
                socket.send_fds(self._childrens, [b"F"], [file])
            finally:
                os.close(file)
        except OSError as error:
            raise Fenced(f"the process that executed the step of this child is gone: {error}") from error

    def leave_to_parent(self) -> None:
        """In a child: without the parent's end here, a child whose parent is gone learns of it."""
        self._ours.close()

    def drain(self) -> None:
        """Store what has come so far; raises what storing raised."""
        with self._reading:
            while self._take():
                pass
            error, self._error = self._error, None
        if error:
            raise error

    def close(self) -> None:
        """Store the rest, and refuse what comes later."""
        try:
            self.drain()
        finally:
            self._closed = True
            # Wakes the thread, and lets a remaining child fail instead of wait.
            with suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._ours.close()
            self._childrens.close()

    def _read(self) -> None:
        while not self._closed:
            # Only look: a thread that takes an event must store it before the next one is taken.
            with suppress(OSError):
                self._ours.recv(1, socket.MSG_PEEK)
            with self._reading:
                if not self._closed:
                    self._take()

    def _take(self) -> bool:
        """Store the next event, if there is one."""
        try:
            data, more, _, _ = self._ours.recvmsg(IN_ONE_PIECE, socket.CMSG_LEN(4), socket.MSG_DONTWAIT)
        except OSError:
            return False
        for _, _, descriptor in more:
            with os.fdopen(int.from_bytes(descriptor, sys.byteorder), "rb") as whole:
                whole.seek(0)
                data = whole.read()
        if not data:
            return False
        try:
            self._store(deserialize_value(data.decode(), EventLogEntry))
        except Exception as error:
            # The thread of the step meets it, as it does with its own events.
            self._error = self._error or error
        return True
