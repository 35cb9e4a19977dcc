from collections.abc import Iterator

import pytest

from scripts import env_file
from tests.stack.stack import Stack


@pytest.fixture(scope="package")
def stack(stack: Stack) -> Iterator[Stack]:
    """The session's stack with BACKUP=daily, which is off again afterwards."""
    env_file.set_value("BACKUP", "daily", stack.env)
    stack.make("up")
    yield stack
    env_file.set_value("BACKUP", "off", stack.env)
    stack.make("up")
    assert "backup" not in stack.compose("ps", "--all", "--services").stdout.split()
