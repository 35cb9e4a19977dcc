"""Three hosts on one machine: the stack's own engine, and two that can join it."""

import os
from collections.abc import Iterator, Sequence

import pytest

from tests.conftest import KEEP
from tests.hosts.engines import Engine, engines

HOSTS = ("box2", "box3")


@pytest.fixture(scope="session")
def boxes() -> Iterator[Sequence[Engine]]:
    """Engines that have nothing of the stack yet."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    with engines(*HOSTS, keep=bool(os.environ.get(KEEP))) as made:
        yield made
