"""Streams and their descriptors."""

import io
import os
import sys
from pathlib import Path
from typing import Any

from dagster_stack.pool.isolation import streams
from tests.unit.disturbances import disturbance

#: As user code sees them, which does not ask for types.
any_sys: Any = sys


@disturbance("streams", lambda: [sys.stdin, sys.stdout, sys.stderr, sys.__stdout__])
def replace_streams(_: Path) -> None:
    any_sys.stdin, any_sys.stdout, any_sys.stderr, any_sys.__stdout__ = (io.StringIO() for _ in range(4))
    sys.stdout.close()


@disturbance("streams", lambda: [streams.file_of(descriptor) for descriptor in (0, 1, 2)])
def replace_descriptors(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.dup2(file, 1)
    os.close(2)
    os.close(0)


@disturbance("streams", lambda: [os.get_blocking(descriptor) for descriptor in (0, 1, 2)])
def block_nobody(_: Path) -> None:
    for descriptor in (0, 1, 2):
        os.set_blocking(descriptor, False)
