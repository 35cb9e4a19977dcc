"""A running step's output on its way to S3: what is new goes there every few seconds."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dagster._core.storage.compute_log_manager import ComputeIOType

from dagster_stack.logs.context import in_context
from dagster_stack.objects.capture import CapturedStream

logger = logging.getLogger(__name__)

#: Seconds between looks at what a running step printed.
FORWARD_SECS = 1.0
STREAMS = (ComputeIOType.STDOUT, ComputeIOType.STDERR)
#: The rest after an upload, in durations of that upload, and seconds that it lasts at most: what a step prints shall be
#: seen within 5 s, however much it has printed before.
REST, MOST_REST_SECS = 9, 2.5


class PartialUpload:
    """Brings what a step has printed so far to the log of its process, and by `upload` to where Dagit finds it.

    `interval` is the seconds from one upload to the next at least; with None there is none.
    """

    def __init__(
        self,
        upload: Callable[[ComputeIOType], None],
        interval: float | None,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upload = upload
        self._interval = interval
        #: Bytes of a stream after which nothing is added to what is stored.
        self._most = most
        self._clock = clock
        self._stopped = threading.Event()
        self._sizes = dict.fromkeys(STREAMS, 0)
        self._next_at = 0.0
        #: The streams of which a part is in S3.
        self.uploaded: set[ComputeIOType] = set()

    @contextmanager
    def while_running(self, streams: Sequence[CapturedStream]) -> Iterator[None]:
        thread = threading.Thread(
            target=in_context(self._run), args=(streams,), name="step-output", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _run(self, streams: Sequence[CapturedStream]) -> None:
        while not self._stopped.wait(FORWARD_SECS):
            self.look(streams)

    def look(self, streams: Sequence[CapturedStream]) -> None:
        """Forward new output, and upload it when it is time."""
        for stream in streams:
            stream.forward()
        started = self._clock()
        if not self._interval or started < self._next_at:
            return
        sizes = [min(stream.size, self._most) for stream in streams]
        news = [(name, size) for name, size in zip(STREAMS, sizes, strict=True) if size > self._sizes[name]]
        for name, size in news:
            if self._try_upload(name):
                self._sizes[name] = size
        if news:
            took = self._clock() - started
            # A look that comes a moment too early must not have to wait for the next one.
            pause = max(self._interval - FORWARD_SECS / 2 - took, min(took * REST, MOST_REST_SECS))
            self._next_at = started + took + pause

    def _try_upload(self, stream: ComputeIOType) -> bool:
        try:
            self._upload(stream)
        except Exception as error:
            # Its whole output is uploaded at its end; meanwhile the step goes on, and its output here.
            logger.warning(
                "the output so far is not in S3: %s", error, extra={"action": "output.not_uploaded"}
            )
            return False
        self.uploaded.add(stream)
        return True
