"""Step output in S3, captured without helper processes of a step's own, with links that open in the user's browser."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import Field, Noneable, StringSource
from dagster._core.storage.cloud_storage_compute_log_manager import DEFAULT_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES
from dagster._core.storage.compute_log_manager import (
    CapturedLogContext,
    CapturedLogData,
    CapturedLogSubscription,
    ComputeIOType,
)
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster._utils import ensure_file
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager
from s3transfer.utils import ReadFileChunk

from dagster_stack.errors import OutputUnreadable
from dagster_stack.objects.capture import captured
from dagster_stack.objects.client import presigned_link, s3_client
from dagster_stack.objects.output_reading import GONE, OutputReader, OutputSubscription, Subscriptions
from dagster_stack.objects.output_upload import STREAMS, PartialUpload
from dagster_stack.objects.pump import NOTE_BYTES
from dagster_stack.settings import s3_key_prefix

logger = logging.getLogger(__name__)

#: Bytes that are uploaded from memory; more is read from the file while it is sent.
IN_MEMORY = 1 << 20
#: Seconds after the end of a run for which output may still be on its way.
UPLOAD_SECS = 60


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
        # The stack's own place in the bucket comes first.
        self._s3_prefix = f"{s3_key_prefix()}{prefix}"
        self._public_url = public_url or endpoint_url or None
        self._upload_interval = upload_interval
        self._local_manager = LocalComputeLogManager(local_dir)
        self._subscription_manager: Any = Subscriptions()
        self._reader = OutputReader(endpoint_url or None, bucket)
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

    # --- writing ---------------------------------------------------------------------------------------

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        out, err = (self._local_file(log_key, stream) for stream in STREAMS)
        upload = PartialUpload(
            lambda stream: self.upload_to_cloud_storage(log_key, stream, partial=True),
            self.upload_interval,
            kept_bytes() + NOTE_BYTES,
        )
        owner = os.getpid()
        try:
            with captured(out, err, kept_bytes()) as streams, upload.while_running(streams):
                yield CapturedLogContext(log_key)
        finally:
            # A child that the step forked ends its copy of the step here, too.
            if os.getpid() == owner:
                self._finish(log_key, upload.uploaded)

    def upload_to_cloud_storage(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        """Store what was printed so far; of much output the beginning. What is printed meanwhile is left out."""
        path = self._local_file(log_key, io_type)
        # That of a sensor's or schedule's tick has one stream.
        ensure_file(str(path))
        with path.open("rb") as file:
            printed = os.fstat(file.fileno()).st_size
            size = min(printed, kept_bytes() + NOTE_BYTES)
            body = file.read(size) if size <= IN_MEMORY else ReadFileChunk(file, size, printed)
            self._s3_session.put_object(
                Bucket=self._s3_bucket,
                Key=self._key(log_key, io_type, partial),
                Body=body,
                ContentType="text/plain",
            )
        if printed > kept_bytes() and not partial:
            logger.warning(
                "of %s the first %d bytes are kept",
                io_type.value,
                kept_bytes(),
                extra={"action": "output.cut"},
            )

    def _finish(self, log_key: Sequence[str], partial: set[ComputeIOType]) -> None:
        try:
            # Stderr last: that it is there tells Dagit that all is. Without it the log would seem unfinished.
            for stream in STREAMS:
                if stream is ComputeIOType.STDERR or self._local_file(log_key, stream).stat().st_size:
                    self.upload_to_cloud_storage(log_key, stream)
            for stream in partial:
                self._s3_session.delete_object(
                    Bucket=self._s3_bucket, Key=self._key(log_key, stream, partial=True)
                )
        finally:
            for stream in STREAMS:
                self._local_file(log_key, stream).unlink(missing_ok=True)

    def _local_file(self, log_key: Sequence[str], stream: ComputeIOType) -> Path:
        return Path(self.local_manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[stream]))

    def _key(self, log_key: Sequence[str], stream: ComputeIOType, partial: bool = False) -> str:
        return str(self._s3_key(log_key, stream, partial=partial))  # type: ignore[no-untyped-call]

    # --- reading ---------------------------------------------------------------------------------------

    def get_log_data(
        self, log_key: Sequence[str], cursor: str | None = None, max_bytes: int | None = None
    ) -> CapturedLogData:
        """What is new since `cursor`; from the start also why there is nothing to read, in the place of output."""
        found: list[bytes | None] = []
        ends: list[int] = []
        for stream, offset in zip(STREAMS, self.parse_cursor(cursor), strict=True):
            try:
                data, end = self.get_log_data_for_type(log_key, stream, offset, max_bytes)
            except OutputUnreadable as error:
                data, end = (None if offset else f"{error}\n".encode()), offset
            found.append(data)
            ends.append(end)
        if found == [None, None] and ends == [0, 0] and self._is_over(log_key):
            found = [GONE.encode()] * 2
        stdout, stderr = found
        return CapturedLogData(log_key, stdout, stderr, self.build_cursor(*ends))

    def get_log_data_for_type(
        self, log_key: Sequence[str], io_type: ComputeIOType, offset: int, max_bytes: int | None
    ) -> tuple[bytes | None, int]:
        """None when nothing is stored, or printed by this process; raises OutputUnreadable."""
        if self.has_local_file(log_key, io_type):
            path = self._local_file(log_key, io_type)
            return self.local_manager.read_path(str(path), offset, max_bytes)  # type: ignore[no-any-return]
        keys = [self._key(log_key, io_type), self._key(log_key, io_type, partial=True)]
        return self._reader.read(keys, offset, max_bytes) or (None, offset)

    def cloud_storage_has_logs(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> bool:
        return self._reader.has(self._key(log_key, io_type, partial))

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str | None:
        """None when there is nothing to download, or it is refused: what is shown in its place says which."""
        if not self.cloud_storage_has_logs(log_key, io_type):
            return None
        return presigned_link(self._public_url, self._s3_bucket, self._key(log_key, io_type))

    def subscribe(self, log_key: Sequence[str], cursor: str | None = None) -> CapturedLogSubscription:
        subscription = OutputSubscription(self, log_key, cursor)
        self.on_subscribe(subscription)  # type: ignore[no-untyped-call]
        return subscription

    def _is_over(self, log_key: Sequence[str]) -> bool:
        """Whether a run's step can produce no more output."""
        if not self.has_instance or list(log_key[1:2]) != ["compute_logs"]:
            return False
        record = self._instance.get_run_record_by_id(log_key[0])
        if record is None:
            return True
        return (
            record.dagster_run.is_finished
            and record.end_time is not None
            and time.time() - record.end_time > UPLOAD_SECS
        )


def kept_bytes() -> int:
    """Bytes of a stream that are kept: Dagster's setting, 50 MB without it, no limit with 0."""
    text = os.environ.get("DAGSTER_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES")
    return int(text or DEFAULT_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES) or 1 << 62
