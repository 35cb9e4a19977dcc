"""Workers of one queue and of two, which have taken nothing."""

from collections.abc import Iterator

import pytest
from celery.worker import state

from tests.unit.subscription.stubs import Worker


@pytest.fixture(autouse=True)
def _nothing_taken() -> Iterator[None]:
    state.reserved_requests.clear()
    state.active_requests.clear()
    yield
    state.reserved_requests.clear()
    state.active_requests.clear()


@pytest.fixture
def worker() -> Worker:
    return Worker(["dagster"])


@pytest.fixture
def on_two() -> Worker:
    """A worker with one process on two queues."""
    return Worker(["dagster", "heavy"])
