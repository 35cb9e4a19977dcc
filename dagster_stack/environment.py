"""What the first command of a container gets that Compose can't write: the broker's address, of its parts."""

import os

from dagster_stack.settings import BROKER_VARIABLE, broker_address


def complete() -> None:
    """Put it into this process's environment, for whatever Celery reads the variable: a job's own executor, the stock
    command line. The stack's own code makes the same address itself."""
    if url := broker_address():
        os.environ[BROKER_VARIABLE] = url
