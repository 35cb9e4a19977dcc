"""The `daemon` service: Dagster's daemon with a sign of life, a look after runs that nobody drives, and retention.

With DAEMONS=2 or more one leads, and the others stand by with all that they need loaded.
"""

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dagster import DagsterInstance
from dagster._daemon import controller
from dagster._daemon.cli import cli
from dagster._daemon.controller import get_daemon_statuses

from dagster_stack import definitions
from dagster_stack.launch import run_queue
from dagster_stack.launch.run_watch import RunWatch
from dagster_stack.logs.libraries import leave_to_service, use_in_dagster
from dagster_stack.patches.dagster import DAEMON_INTERVAL, DAEMON_START
from dagster_stack.retention.housekeeping import Housekeeping
from dagster_stack.services.code_server import use_in_code_servers
from dagster_stack.services.health import Heartbeat
from dagster_stack.services.leadership import Leadership, last_sign
from dagster_stack.store.instance_storage import PooledPostgresStorage
from dagster_stack.store.leases import LEAD
from dagster_stack.store.ledger import stack_storage

#: How many daemons there are, as .env says.
DAEMONS_VARIABLE = "DAEMONS"
#: Connections that this process keeps at most: it evaluates sensors and schedules in several threads.
CONNECTIONS = 10
#: Seconds between two looks for backfills to submit.
BACKFILL_LOOK_SECS = 3
#: Seconds between looks: each reads one row a daemon type from Postgres.
PROBE_INTERVAL_SECS = 10
#: Seconds beyond its interval of 30 after which a daemon thread counts as silent.
SILENCE_SECS = 60


def run_daemon(workspaces: Sequence[str]) -> None:
    """Run Dagster's daemon, with the code locations of workspace files, until it is stopped."""
    PooledPostgresStorage.allow_process(CONNECTIONS)
    DAEMON_INTERVAL.replace(BACKFILL_LOOK_SECS)
    use_in_dagster()
    use_in_code_servers()
    leave_to_service(controller)
    definitions.use_in_daemon()
    # By `make deploy`, which tells it again and again while it needs it.
    signal.signal(signal.SIGUSR1, lambda *_: run_queue.rest())
    signal.signal(signal.SIGUSR2, lambda *_: run_queue.go_on())
    with DagsterInstance.get() as instance:
        definitions.about_to_load(instance)
        leadership = leadership_of(instance)

        def lead() -> None:
            RunWatch(instance).start()
            Housekeeping(instance).start()

        def complaint() -> str | None:
            stands_by = leadership and not leadership.leads
            return leadership.complaint() if leadership and stands_by else daemon_complaint(instance)

        # No exit of our own: Dagster's daemon ends itself when one of its threads falls silent.
        Heartbeat(complaint, interval=PROBE_INTERVAL_SECS).start()
        if leadership:
            start_as_leader(leadership, lead)
        else:
            lead()
        try:
            cli(["run", *(word for file in workspaces for word in ("--workspace", file))], obj={})
        finally:
            if leadership:
                leadership.release()


def leadership_of(instance: DagsterInstance) -> Leadership | None:
    """None where this is the only daemon. Then no other one is to write that had the lead before."""
    storage = stack_storage(instance)
    if not storage:
        return None
    if int(os.environ.get(DAEMONS_VARIABLE) or 1) > 1:
        return Leadership(storage.leases, partial(last_sign, instance))
    storage.leases.dissolve(LEAD)
    return None


def start_as_leader(leadership: Leadership, lead: Callable[[], None]) -> None:
    """Let Dagster's daemon, once it has loaded the code, start its threads when it leads."""
    start = DAEMON_START.found()

    def start_when_leading(self: Any, context: Any, *arguments: Any, **named: Any) -> None:
        leadership.await_lead(
            partial(definitions.renew_after_reload, context, named.get("grpc_server_registry"))
        )
        lead()
        start(self, context, *arguments, **named)

    DAEMON_START.replace(start_when_leading)


def daemon_complaint(instance: DagsterInstance) -> str | None:
    """Which of Dagster's daemons are silent, if any."""
    statuses = get_daemon_statuses(
        instance,
        instance.get_required_daemon_types(),
        # An error in a heartbeat is a user's failed sensor or schedule: the daemon itself is well.
        ignore_errors=True,
        heartbeat_tolerance_seconds=SILENCE_SECS,
    )
    silent = sorted(name for name, status in statuses.items() if status.required and not status.healthy)
    return f"no heartbeat of {', '.join(silent)}" if silent else None
