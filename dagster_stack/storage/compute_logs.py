"""Step output in S3, captured without helper processes, with links that open in the user's browser."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dagster import Field, Noneable, StringSource
from dagster._core.storage.cloud_storage_compute_log_manager import (
    PollingComputeLogSubscriptionManager,
)
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from dagster_stack.storage.capture import CapturedStream, captured
from dagster_stack.storage.s3 import presigned_link, s3_client

logger = logging.getLogger(__name__)

#: Seconds between looks at what a running step printed.
FORWARD_SECS = 1.0
STREAMS = (ComputeIOType.STDOUT, ComputeIOType.STDERR)


class S3ComputeLogs(S3ComputeLogManager):
    """dagster-aws's manager; `public_url` is the store's address as the user's browser reaches it.

    An empty `endpoint_url` is Amazon's own, an empty `public_url` is the same as `endpoint_url`.
    """

    def __init__(
        self,
        *,
        bucket: str,
        local_dir: str,
        prefix: str = "logs",
        endpoint_url: str | None = None,
        public_url: str | None = None,
        upload_interval: int | None = None,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        # Not dagster-aws's constructor: it makes a client of its own, 15 MB and 150 ms for every process.
        super(S3ComputeLogManager, self).__init__()  # type: ignore[no-untyped-call]
        self._s3_session = s3_client(endpoint_url or None)
        self._s3_bucket = bucket
        self._s3_prefix = prefix
        self._public_url = public_url or endpoint_url or None
        self._upload_interval = upload_interval
        self._local_manager = LocalComputeLogManager(local_dir)
        self._subscription_manager = PollingComputeLogSubscriptionManager(self)
        self._truncated: set[Any] = set()
        self._inst_data = inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        return {
            "bucket": StringSource,
            "local_dir": StringSource,
            "prefix": Field(StringSource, default_value="logs"),
            "endpoint_url": Field(StringSource, is_required=False),
            "public_url": Field(StringSource, is_required=False),
            "upload_interval": Field(Noneable(int), is_required=False),
        }

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        out, err = (self._local_file(log_key, stream) for stream in STREAMS)
        upload = PartialUpload(self, log_key)
        try:
            with captured(out, err) as streams, upload.while_running(streams):
                yield CapturedLogContext(log_key)
        finally:
            self._finish(log_key, upload.uploaded)

    def _finish(self, log_key: Sequence[str], partial: set[ComputeIOType]) -> None:
        try:
            # Stderr last: that it is there tells Dagit that all is. Without it the log would seem unfinished.
            for stream in STREAMS:
                if stream is ComputeIOType.STDERR or self._local_file(log_key, stream).stat().st_size:
                    self.upload_to_cloud_storage(log_key, stream)
            for stream in partial:
                key = self._s3_key(log_key, stream, partial=True)  # type: ignore[no-untyped-call]
                self._s3_session.delete_object(Bucket=self._s3_bucket, Key=key)
        finally:
            for stream in STREAMS:
                self._local_file(log_key, stream).unlink(missing_ok=True)

    def _local_file(self, log_key: Sequence[str], stream: ComputeIOType) -> Path:
        return Path(self.local_manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[stream]))

    def _upload_file_obj(
        self, data: IO[bytes], log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        key = self._s3_key(log_key, io_type, partial=partial)  # type: ignore[no-untyped-call]
        self._s3_session.put_object(
            Bucket=self._s3_bucket, Key=key, Body=data.read(), ContentType="text/plain"
        )

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str | None:
        if not self.cloud_storage_has_logs(log_key, io_type):
            return None
        key = self._s3_key(log_key, io_type)  # type: ignore[no-untyped-call]
        return presigned_link(self._public_url, self._s3_bucket, key)


class PartialUpload:
    """Brings what a running step has printed to the process's own streams, and to S3 for Dagit."""

    def __init__(self, manager: S3ComputeLogs, log_key: Sequence[str]) -> None:
        self._manager = manager
        self._log_key = log_key
        self._stopped = threading.Event()
        #: The streams of which a part is in S3.
        self.uploaded: set[ComputeIOType] = set()

    @contextmanager
    def while_running(self, streams: Sequence[CapturedStream]) -> Iterator[None]:
        thread = threading.Thread(target=self._run, args=(streams,), name="step-output", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _run(self, streams: Sequence[CapturedStream]) -> None:
        interval = self._manager.upload_interval
        waited = 0.0
        sizes = [0, 0]
        while not self._stopped.wait(FORWARD_SECS):
            found = [stream.forward() for stream in streams]
            waited += FORWARD_SECS
            if not interval or waited < interval:
                continue
            waited = 0
            for stream, size, before in zip(STREAMS, found, sizes, strict=True):
                if size > before:
                    self._upload(stream)
            sizes = found

    def _upload(self, stream: ComputeIOType) -> None:
        try:
            self._manager.upload_to_cloud_storage(self._log_key, stream, partial=True)
        except Exception as error:
            # Its whole output is uploaded at its end; meanwhile the step goes on, and its output here.
            logger.warning("the output so far is not in S3: %s", error)
        else:
            self.uploaded.add(stream)
