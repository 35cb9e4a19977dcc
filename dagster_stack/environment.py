"""What a container's processes get that Compose can't write: the broker's address, whom to trust, no empty keys.

The entrypoint has it done, and Python's own start in what `docker compose exec` starts (docker/dagster/Dockerfile).
"""

import os

from dagster_stack import authorities
from dagster_stack.settings import BROKER_VARIABLE, broker_address

#: Where a store's keys come from the machine's role: to some libraries an empty one is a key.
NEVER_EMPTY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_EC2_METADATA_DISABLED")


def complete() -> None:
    """Put it into this process's environment; raises ValueError or OSError.

    The broker's address is for whatever reads the variable: a job's own executor, the stock command line. The stack's own
    code makes the same address itself.
    """
    authorities.write()
    for name in NEVER_EMPTY:
        if os.environ.get(name) == "":
            del os.environ[name]
    if url := broker_address():
        os.environ[BROKER_VARIABLE] = url
