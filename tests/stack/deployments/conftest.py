"""Modules that give the stack other code or other settings, one after the other, in the order of their names.

Each brings up what it needs from whatever the one before has left, since a change of all services takes half a minute.
"""

from collections.abc import Iterator

import pytest

from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack


@pytest.fixture(scope="package")
def own_code_afterwards(stack: Stack, monitoring: Monitoring) -> Iterator[None]:
    """After the last of these modules the stack, whose monitoring has the code too, has its own and its settings again."""
    yield
    stack.make("up")
