"""Looks after runs without a runner: hands over lost ones again, ends canceled ones, reports missing runners."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta

from dagster import DagsterEvent, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from dagster_stack import tags
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.launch.inner_runs import end_left
from dagster_stack.launch.launcher import CeleryRunLauncher
from dagster_stack.logs.context import bound
from dagster_stack.messaging.publishing import queue_state
from dagster_stack.messaging.task_names import RUN_QUEUE
from dagster_stack.run.run_execution import cancel
from dagster_stack.store.leases import Leases, Work
from dagster_stack.store.ledger import stack_storage
from dagster_stack.timing import IDLE_SECS

logger = logging.getLogger(__name__)

#: Seconds between two looks.
LOOK_SECS = 5
#: Seconds after which a run that was made and not submitted counts as forgotten: the two follow each other at once.
FORGOTTEN_SECS = 60
#: Seconds between two looks for what can be forgotten.
FORGET_SECS = 3600
#: States in which a run should be in a runner's hands. Dagster's own run monitoring looks after those that have
#: STARTED, and asks the launcher how they are.
WATCHED = [DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING]


class RunWatch(threading.Thread):
    """Part of the daemon, for the runs of this stack's launcher. Runs in a runner's hands are left alone."""

    def __init__(self, instance: DagsterInstance) -> None:
        super().__init__(name="run-watch", daemon=True)
        self._instance = instance
        #: When a run was first seen without a runner, on the monotonic clock.
        self._idle_since: dict[str, float] = {}
        #: Runs whose log says that no runner is there.
        self._told: set[str] = set()
        self._forget_at = 0.0

    def run(self) -> None:
        launcher, storage = self._instance.run_launcher, stack_storage(self._instance)
        if not (isinstance(launcher, CeleryRunLauncher) and storage):
            return
        while True:
            time.sleep(LOOK_SECS)
            try:
                self.look(launcher, storage.leases)
            except BrokerUnreachable as error:
                logger.info(
                    "runs without a runner wait for the broker: %s", error, extra={"action": "run.waiting"}
                )
            except Exception:
                logger.exception(
                    "the look after runs failed; the next one follows", extra={"action": "watch.failed"}
                )

    def look(self, launcher: CeleryRunLauncher, leases: Leases) -> None:
        """One look; raises BrokerUnreachable when runs have no runner and it is unknown whether their messages wait."""
        now = time.monotonic()
        if now >= self._forget_at:
            leases.prune()
            self._forget_at = now + FORGET_SECS
        self._submit_forgotten()
        end_left(self._instance, leases)
        for run in self._due(leases, now):
            with bound(run=run.run_id):
                self._care_for(launcher, run, now)

    def _care_for(self, launcher: CeleryRunLauncher, run: DagsterRun, now: float) -> None:
        if run.status == DagsterRunStatus.CANCELING:
            logger.warning(
                "run %s is being canceled and has no runner: ended",
                run.run_id,
                extra={"action": "run.canceled"},
            )
            cancel(launcher.app, self._instance, run)
        elif self._is_lost(launcher, run):
            logger.warning(
                "run %s has no runner: handed over again", run.run_id, extra={"action": "run.sent_again"}
            )
            self._instance.report_engine_event("No runner has this run: it is handed over again.", run)
            launcher.hand_over(run)
            self._idle_since[run.run_id] = now

    def _submit_forgotten(self) -> None:
        """Put runs into the run queue whose maker died before it submitted them."""
        before = datetime.now(UTC) - timedelta(seconds=FORGOTTEN_SECS)
        unsubmitted = RunsFilter(statuses=[DagsterRunStatus.NOT_STARTED], created_before=before)
        for run in self._instance.get_runs(unsubmitted):
            # A run without an origin in a workspace is executed by hand, by its maker.
            if run.remote_job_origin:
                with bound(run=run.run_id):
                    logger.warning(
                        "run %s was made and never submitted: submitted now",
                        run.run_id,
                        extra={"action": "run.submitted"},
                    )
                self._instance.report_dagster_event(DagsterEvent.job_enqueue(run), run.run_id)

    def _due(self, leases: Leases, now: float) -> list[DagsterRun]:
        """Runs that have had no runner for a while."""
        runs = [run for run in self._instance.get_runs(RunsFilter(statuses=WATCHED)) if is_launched(run)]
        driven = leases.active([run.run_id for run in runs])
        idle = {run.run_id: run for run in runs if Work(run.run_id) not in driven}
        self._idle_since = {run_id: self._idle_since.get(run_id, now) for run_id in idle}
        self._told &= idle.keys()
        return [run for run_id, run in idle.items() if now - self._idle_since[run_id] >= IDLE_SECS]

    def _is_lost(self, launcher: CeleryRunLauncher, run: DagsterRun) -> bool:
        """Whether no message of a run can be waiting for a runner; a run whose message may do so is told.

        Those that are delayed say nothing: one of a run that goes on is so for as long as that lasts.
        """
        waiting = queue_state(launcher.app, RUN_QUEUE)
        if waiting.ready:
            if not waiting.consumers and run.run_id not in self._told:
                self._told.add(run.run_id)
                self._instance.report_engine_event(
                    f'The run waits in queue "{RUN_QUEUE}" and no runner consumes it. `docker compose up -d runner`'
                    " starts one; `docker compose logs runner` says why there is none. A runner that lost the"
                    " broker while it was busy takes the run when one of its runs has ended.",
                    run,
                )
            return False
        return not launcher.waits_for_its_code(run)


def is_launched(run: DagsterRun) -> bool:
    """Whether the launcher has a run, or was about to have it: what is executed by hand is never STARTING.

    A daemon that is killed while it hands a run over leaves it STARTING, without a message and without the code's tag.
    """
    return run.status == DagsterRunStatus.STARTING or tags.CODE in run.tags
