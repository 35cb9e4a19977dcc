"""The process that code servers are forked from: Python's own fork server, with the platform and no user code.

It loads the platform while its parent does the same for itself.
"""

import multiprocessing
from multiprocessing import forkserver

#: What it imports.
PLATFORM = "dagster_stack.services.code_server_platform"


def begin() -> None:
    """Let this process have one."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([PLATFORM])
    forkserver.ensure_running()
