"""The `dagit` service: Dagster's webserver, which ends itself when the process with the user's code is gone.

Dagit loads the code in a child process of its own (the code server) and never looks at it again. That one ends
when it crashes, when memory runs out, and by itself when Dagit was silent for 45 s (a paused container, a
laptop that slept). Dagit then serves its pages and fails every launch until somebody presses Reload.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from dagster_webserver import cli
from starlette.applications import Starlette

from dagster_stack import definitions
from dagster_stack.logs.libraries import leave_to_service, use_in_dagster
from dagster_stack.logs.service import configure
from dagster_stack.own_names import OwnNames
from dagster_stack.patches.dagster import WEBSERVER_APP
from dagster_stack.patches.servers import without_handlers
from dagster_stack.services import code_server, mutations
from dagster_stack.services.answers import use_in_webserver
from dagster_stack.services.code_server import use_in_code_servers
from dagster_stack.services.foreign_pages import ForeignPages
from dagster_stack.services.health import LIFELESS_STATES, Heartbeat, process_state
from dagster_stack.services.identity import Door, door_digest
from dagster_stack.store.connections import limit_writes
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.timing import WRITE_PATIENCE_SECS

#: Connections that this process keeps at most: it answers many requests at once.
CONNECTIONS = 20
#: Seconds without a code server after which Dagit exits for a restart. A reload in Dagit starts the new one
#: before the old one ends.
EXIT_AFTER_SECS = 20
REFUSED_HANDSHAKE = "ASGI callable returned without completing handshake."


class CodeServerProbe:
    """Tells what is wrong with this process's code server, once there has been one.

    Until then Dagster's own start-up timeout decides, and Dagit shows why the code can't be loaded.
    """

    def __init__(self, servers: Callable[[], list[int]] = code_server.pids) -> None:
        self._servers = servers
        self._seen = False

    def __call__(self) -> str | None:
        if any(process_state(pid) not in LIFELESS_STATES for pid in self._servers()):
            self._seen = True
            return None
        return "the process that loads the code is gone, no run can be launched" if self._seen else None


def guard_requests(own: OwnNames, door_digest: str | None = None) -> None:
    """Let the webserver of this process answer under these names alone, to no foreign page, and, with the digest of the
    door's secret, to nobody but the door."""

    def make_guarded(*arguments: Any, **options: Any) -> Starlette:
        app: Starlette = make_app(*arguments, **options)
        app.add_middleware(ForeignPages, own=own)
        if door_digest:
            app.add_middleware(Door, digest=door_digest)
        return app

    make_app = WEBSERVER_APP.replace(make_guarded)
    # uvicorn takes each handshake that an app answers with a refusal for a mistake of the app.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != REFUSED_HANDSHAKE)


def run_webserver(words: Sequence[str]) -> None:
    """Run Dagster's webserver with the words of its command line until it is stopped."""
    configure("dagit")
    use_in_dagster()
    without_handlers()
    use_in_code_servers()
    leave_to_service(cli)
    use_in_webserver()
    definitions.use_in_webserver()
    digest = door_digest()
    guard_requests(OwnNames.of("dagit"), digest)
    if digest:
        mutations.use_in_webserver()
    PooledPostgresStorage.allow_process(CONNECTIONS)
    limit_writes(WRITE_PATIENCE_SECS)
    Heartbeat(CodeServerProbe(), exit_after=EXIT_AFTER_SECS).start()
    cli.cli(list(words), auto_envvar_prefix="DAGSTER_WEBSERVER")
