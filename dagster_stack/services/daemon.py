"""The `daemon` service: Dagster's daemon with a sign of life, and an end for the runs that it lost."""

import logging

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._daemon.cli import cli
from dagster._daemon.controller import get_daemon_statuses

from dagster_stack.services.health import Heartbeat
from dagster_stack.storage.postgres import PooledPostgresStorage

logger = logging.getLogger(__name__)

#: Connections that this process keeps at most: it evaluates sensors and schedules in several threads.
CONNECTIONS = 10
#: Runs in these states have a process, and with Dagster's default launcher it lives in this container.
DRIVEN = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
#: Seconds between looks: each reads one row a daemon type from Postgres.
PROBE_INTERVAL_SECS = 10
#: Seconds beyond its interval of 30 after which a daemon thread counts as silent.
SILENCE_SECS = 60


def run_daemon() -> None:
    """Run Dagster's daemon until it is stopped."""
    PooledPostgresStorage.allow_process(CONNECTIONS)
    with DagsterInstance.get() as instance:
        end_lost_runs(instance)
        # No exit of our own: Dagster's daemon ends itself when one of its threads falls silent, and an
        # exit while Postgres is away would end the runs that live here.
        Heartbeat(lambda: daemon_complaint(instance), interval=PROBE_INTERVAL_SECS).start()
        cli(["run", "--log-format", "colored"], obj={})


def end_lost_runs(instance: DagsterInstance) -> int:
    """Fail the runs whose process ended with an earlier daemon; returns how many.

    Dagster's default launcher would leave them STARTED for ever. As a failed run with its reason they
    are started again by `run_retries` from the steps that had not ended.
    """
    lost = [
        run
        for run in instance.get_runs(RunsFilter(statuses=DRIVEN))
        # Set by the default launcher: runs that somebody started by hand elsewhere are not ours to end.
        if GRPC_INFO_TAG in run.tags
    ]
    for run in lost:
        logger.warning("run %s was driven by an earlier daemon and is lost: failing it", run.run_id)
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The daemon restarted while this run was being canceled.")
        else:
            instance.report_run_failed(
                run,
                "The process of this run ended with the daemon that drove it, which was stopped or"
                " restarted. If run retries are on (run_retries in dagster.yaml), it starts again from"
                " the steps that had not ended.",
            )
    return len(lost)


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
