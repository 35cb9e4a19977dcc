"""The process that loads the user's code for Dagit and for the daemon: Dagster's own, with the log of its service."""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise

from dagster_stack.loading import uncollected
from dagster_stack.logs.libraries import leave_to_service, replace, use_in_dagster
from dagster_stack.logs.service import SERVICE_VARIABLE, active, configure
from dagster_stack.project import found, use


def use_in_code_servers() -> None:
    """Let the code servers that this process starts be this module."""
    from dagster._grpc import server

    if log := active():
        os.environ[SERVICE_VARIABLE] = log.service
    replace(server, "get_python_environment_entry_point", entry_point)


def entry_point(executable: str) -> Sequence[str]:
    """In the place of Dagster's own: how a Python is called with the words of Dagster's command line."""
    # Another Python, of a code location that names one, may not have this module.
    return [executable, "-m", __name__ if executable == sys.executable else "dagster"]


def use_location(words: Sequence[str]) -> None:
    """Let this process import what its code location may: functions import when Dagster has long loaded it."""
    for name, following in pairwise(words):
        if name == "--location-name":
            use(entry for each in found().locations if each.name == following for entry in each.path)


def main() -> None:
    """Run Dagster's command line with the arguments of this process."""
    with uncollected():
        from dagster._cli import api
        from dagster._cli import main as command_line

    from dagster_stack.broker.address import withhold
    from dagster_stack.project import read_only

    configure("code-server")
    use_location(sys.argv)
    use_in_dagster()
    read_only.use_in_dagster()
    withhold()
    leave_to_service(api)
    command_line()


if __name__ == "__main__":
    main()
