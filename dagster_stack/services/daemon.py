"""The `daemon` service: Dagster's daemon with a sign of life, a look after runs that nobody drives, and retention."""

from collections.abc import Sequence

from dagster import DagsterInstance
from dagster._daemon import controller
from dagster._daemon.cli import cli
from dagster._daemon.controller import get_daemon_statuses

from dagster_stack import definitions
from dagster_stack.launch.run_watch import RunWatch
from dagster_stack.logs.libraries import leave_to_service, use_in_dagster
from dagster_stack.patches.dagster import DAEMON_INTERVAL
from dagster_stack.retention.housekeeping import Housekeeping
from dagster_stack.services.code_server import use_in_code_servers
from dagster_stack.services.health import Heartbeat
from dagster_stack.store.instance_storage import PooledPostgresStorage

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
    with DagsterInstance.get() as instance:
        RunWatch(instance).start()
        Housekeeping(instance).start()
        # No exit of our own: Dagster's daemon ends itself when one of its threads falls silent.
        Heartbeat(lambda: daemon_complaint(instance), interval=PROBE_INTERVAL_SECS).start()
        cli(["run", *(word for file in workspaces for word in ("--workspace", file))], obj={})


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
