"""Step output in S3, with links that open in the user's browser."""

from collections.abc import Mapping, Sequence
from typing import Any

from dagster import Field, StringSource
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from dagster_stack.storage import presigned_link


class S3ComputeLogs(S3ComputeLogManager):
    """dagster-aws's manager; `public_url` is the store's address as the user's browser reaches it.

    An empty `endpoint_url` is Amazon's own, an empty `public_url` is the same as `endpoint_url`.
    """

    def __init__(
        self,
        bucket: str,
        public_url: str | None = None,
        endpoint_url: str | None = None,
        **config: Any,
    ) -> None:
        super().__init__(bucket, endpoint_url=endpoint_url or None, **config)
        self._public_url = public_url or endpoint_url or None

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        return {
            **super().config_type(),  # type: ignore[no-untyped-call]
            "public_url": Field(StringSource, is_required=False),
        }

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str | None:
        if not self.is_capture_complete(log_key):
            return None
        key = self._s3_key(log_key, io_type)  # type: ignore[no-untyped-call]
        return presigned_link(self._public_url, self._s3_bucket, key)
