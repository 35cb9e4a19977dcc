"""Events on their way to the event log: collected for an instant, then written together."""

import threading
import time
from collections.abc import Callable, Sequence

from dagster._core.events.log import EventLogEntry

from dagster_stack.errors import Refused

#: Seconds that an event waits at most for others: what a step logs is in Dagit as if it were written at once.
DELAY_SECS = 0.1
#: Events that are written at once without waiting any longer.
SIZE = 200


class EventBatch:
    """Keeps events in the order in which they came and hands them to `write`, all that wait in one call.

    An error of `write` that happens in the background is raised by the next call for an event of Dagster's: from lines
    that user code logs, Dagster hides it. `write` raises Refused for what it has dealt with; else all is kept.
    """

    def __init__(self, write: Callable[[Sequence[EventLogEntry]], None], delay: float = DELAY_SECS) -> None:
        self._write = write
        self._delay = delay
        self._events: list[EventLogEntry] = []
        self._due = 0.0
        self._error: Exception | None = None
        self._closed = False
        # Held during a write, so that two threads can't change the order.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_when_due, name="event-batch", daemon=True)
        self._thread.start()

    def add(self, event: EventLogEntry, at_once: bool = False) -> None:
        """Keep an event until it is written; `at_once`: now, with all that wait.

        Raises what went wrong since the last time; then the event is not kept.
        """
        with self._changed:
            if event.is_dagster_event:
                self._raise_error()
            self._events.append(event)
            if at_once:
                self._write_now()
            elif len(self._events) == 1:
                self._due = time.monotonic() + self._delay
                self._changed.notify()
            elif len(self._events) >= SIZE:
                self._write_quietly()

    def flush(self) -> None:
        """Return when all added events are written; raises what `write` raised."""
        with self._changed:
            self._raise_error()
            self._write_now()

    def close(self) -> None:
        """Write the rest and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self.flush()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error

    def _write_now(self) -> None:
        if self._events:
            events, self._events = self._events, []
            try:
                self._write(events)
            except Refused:
                raise
            except BaseException:
                self._events = [*events, *self._events]
                raise

    def _write_quietly(self) -> None:
        try:
            self._write_now()
        except Exception as error:
            self._error = error

    def _write_when_due(self) -> None:
        with self._changed:
            while not self._closed:
                if not self._events:
                    self._changed.wait()
                elif (wait := self._due - time.monotonic()) > 0:
                    self._changed.wait(wait)
                else:
                    self._write_quietly()
                    if self._events:
                        # The thread that adds and flushes meets the error; trying again here would hide it.
                        return
