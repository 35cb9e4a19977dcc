"""What Dagit reads of the output of steps: what is new, or why there is nothing to read."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from dagster._core.storage.compute_log_manager import CapturedLogData, CapturedLogSubscription

from dagster_stack.errors import OutputUnreadable
from dagster_stack.objects.client import CLOCKS, s3_client
from dagster_stack.settings import LOG_EXPIRY_DAYS

logger = logging.getLogger(__name__)

#: Seconds between two looks for what is new, while a page shows the output of a running step.
POLL_SECS = 1.0
#: What S3 stores say of an object that is not there, and of a range that begins at its end.
MISSING, NOTHING_NEW = {"NoSuchKey", "404"}, {"InvalidRange", "416"}

GONE = (
    f"There is no output here. It was printed more than {LOG_EXPIRY_DAYS} days ago and has expired, or its worker died"
    " before any of it was stored: then the run's events say so. Or it was deleted.\n"
)


class OutputReader:
    """Reads objects of a bucket in ranges: a running step's output is not fetched as a whole at each look."""

    def __init__(self, endpoint_url: str | None, bucket: str) -> None:
        self._endpoint_url = endpoint_url
        self._bucket = bucket

    @property
    def _client(self) -> Any:
        # Made when it is needed: workers read no output.
        return s3_client(self._endpoint_url, impatient=True)

    def read(self, keys: Sequence[str], offset: int, most: int | None) -> tuple[bytes, int] | None:
        """The bytes from `offset` on, `most` of them, of the first of `keys` that is there, and where they end.

        None when none is there; raises OutputUnreadable with what the reader of a log should know.
        """
        end = "" if most is None else offset + most - 1
        for key in keys:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={offset}-{end}")
                data = answer["Body"].read()
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in MISSING:
                    continue
                if code in NOTHING_NEW:
                    return b"", offset
                raise OutputUnreadable(self._refusal(error)) from error
            except (BotoCoreError, OSError) as error:
                raise OutputUnreadable(f"The S3 store does not answer, try again later. {error}") from error
            return data, offset + len(data)
        return None

    def has(self, key: str) -> bool:
        """Whether the store says that an object is there."""
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError, OSError):
            return False
        return True

    def _refusal(self, error: ClientError) -> str:
        """What the store said, and the cure. Its code alone: some stores put the whole request into their sentence."""
        told = error.response["Error"]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if told["Code"] == "NoSuchBucket":
            return (
                f"The bucket {self._bucket} is not there. `make up` makes it, or S3_BUCKET in .env is wrong."
            )
        if told["Code"] == "RequestTimeTooSkewed":
            return f"The S3 store refuses to show this output: {CLOCKS}"
        if status == 403:
            return (
                f"The S3 store refuses to show this output ({told['Code']}). Either S3_ACCESS_KEY in .env lacks"
                f" s3:GetObject and s3:ListBucket for the bucket {self._bucket}, or its S3_SECRET_KEY is wrong."
            )
        return f"The S3 store could not give this output ({told['Code']}), try again later."


class OutputSubscription(CapturedLogSubscription):
    """A page that shows a step's output. It is complete once all that was printed was read."""

    def __call__(self, observer: Callable[[CapturedLogData], None] | None) -> "OutputSubscription":
        self._observer = observer
        self.look()
        return self

    def look(self) -> None:
        # Asked for before it is read: what is printed in between would be missing on the page.
        complete = self._manager.is_capture_complete(self._log_key)
        self.fetch()
        if complete:
            self.complete()


class Subscriptions:
    """Looks after subscriptions in a thread that lives while there are any.

    Dagster's own looks every 5 s, goes on for complete ones, and ends for all of them at the first error.
    """

    def __init__(self) -> None:
        self._open: list[OutputSubscription] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._disposed = threading.Event()

    def add_subscription(self, subscription: OutputSubscription) -> None:
        with self._lock:
            self._open.append(subscription)
            if self._thread is None:
                self._thread = threading.Thread(target=self._poll, name="step-output-pages", daemon=True)
                self._thread.start()

    def remove_subscription(self, subscription: OutputSubscription) -> None:
        with self._lock:
            if subscription in self._open:
                self._open.remove(subscription)
        subscription.complete()

    def dispose(self) -> None:
        self._disposed.set()

    def _poll(self) -> None:
        while not self._disposed.wait(POLL_SECS):
            with self._lock:
                self._open = [each for each in self._open if not each.is_complete]
                if not self._open:
                    self._thread = None
                    return
                found = tuple(self._open)
            for subscription in found:
                try:
                    subscription.look()
                except Exception:
                    logger.warning(
                        "a page got no news of the output that it shows",
                        exc_info=True,
                        extra={"action": "output.not_read"},
                    )
