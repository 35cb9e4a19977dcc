"""The run launcher: a run becomes one durable message on the queue `runs`, and a warm runner drives it."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from dagster_stack import definitions, tags
from dagster_stack.code_version import code_version
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.logs.context import bound
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.delayed import delayed
from dagster_stack.messaging.messages import RunMessage
from dagster_stack.messaging.publishing import queue_state, send
from dagster_stack.messaging.task_names import RUN_QUEUE, RUN_TASK
from dagster_stack.messaging.workers import workers_of
from dagster_stack.project.locations import location_of
from dagster_stack.settings import CeleryConfig, Settings
from dagster_stack.store.connections import patiently
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.leases import Work
from dagster_stack.store.ledger import stack_storage
from dagster_stack.store.sqlstate import is_away
from dagster_stack.timing import IDLE_SECS

logger = logging.getLogger(__name__)


class CeleryRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Hands a run to the `runner` service. A run that could not be handed over stays STARTING: see `RunWatch`."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._app: Celery | None = None
        #: When a run that has STARTED was first seen without a runner, on the monotonic clock.
        self._idle_since: dict[str, float] = {}
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "CeleryRunLauncher":
        return cls(inst_data)

    @property
    def app(self) -> Celery:
        """Made when it is needed: Dagit has the launcher too, and no broker."""
        if self._app is None:
            settings = Settings.from_environment()
            self._app = make_app(CeleryConfig.load(settings.celery_yaml), settings)
        return self._app

    def launch_run(self, context: LaunchRunContext) -> None:
        self.hand_over(context.dagster_run)

    def hand_over(self, run: DagsterRun) -> None:
        """Send a run's message. Sent twice it does no harm: one process at a time drives a run.

        An error would make Dagster fail the run: while the broker or the database is away it stays as it is.
        """
        message = RunMessage(run.run_id, code_version(), location=location_of(run))
        with bound(run=run.run_id, task=message.task_id):
            try:
                self._tell_code(run)
                self._send(run, message)
            except Exception as error:
                if not is_away(error):
                    raise
                logger.error(
                    "run %s is handed over when Postgres is back: %s",
                    run.run_id,
                    error,
                    extra={"action": "run.waiting"},
                )

    def _tell_code(self, run: DagsterRun) -> None:
        """Tag the run with the code and the definitions that it has."""
        code = code_version()
        new = definitions.new_tags(self._instance, run)
        if code and run.tags.get(tags.CODE) != code:
            new[tags.CODE] = code
        # Only what is new: each write makes the run look as if something had happened to it (RunsStuck).
        if new:
            patiently(lambda: self._instance.add_run_tags(run.run_id, new))

    def _send(self, run: DagsterRun, message: RunMessage) -> None:
        try:
            send(self.app, RUN_TASK, message, queue=RUN_QUEUE, shadow=run.job_name)
        except BrokerUnreachable as error:
            logger.warning(
                "run %s waits for the broker: %s", run.run_id, error, extra={"action": "run.waiting"}
            )
            self._instance.report_engine_event(
                f"The run could not be handed to a runner, and is handed over as soon as the broker is back. {error}",
                run,
            )
        else:
            logger.info("run %s is in queue %s", run.run_id, RUN_QUEUE, extra={"action": "run.sent"})

    def terminate(self, run_id: str) -> bool:
        """Ask for a run's end: its runner sees it within seconds. False when there is nothing to end."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return True

    # --- health ------------------------------------------------------------------------------------------

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """NOT_FOUND only when nobody has driven the run for a while, and no message waits for a runner.

        Those that are delayed say nothing: one of a run that goes on is so for as long as that lasts.
        """
        storage = stack_storage(self._instance)
        if run.is_finished:
            status = WorkerStatus.SUCCESS if run.status == DagsterRunStatus.SUCCESS else WorkerStatus.FAILED
            return CheckRunHealthResult(status)
        if tags.CODE not in run.tags or not storage:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "executed by hand: whether it lives, nobody here knows"
            )
        return self._health(run, storage)

    def _health(self, run: DagsterRun, storage: PooledEventLogStorage) -> CheckRunHealthResult:
        if Work(run.run_id) in storage.leases.active([run.run_id]):
            self._idle_since.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        now = time.monotonic()
        if now - self._idle_since.setdefault(run.run_id, now) < IDLE_SECS:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "nobody drives it at the moment")
        try:
            if queue_state(self.app, RUN_QUEUE).ready:
                return CheckRunHealthResult(WorkerStatus.RUNNING, f'it may wait in queue "{RUN_QUEUE}"')
            if self.waits_for_its_code(run):
                return CheckRunHealthResult(
                    WorkerStatus.RUNNING, "it waits for a runner with its code, which is busy"
                )
        except BrokerUnreachable as error:
            # Not known is not dead.
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"unknown: {error}")
        # It gets the same time again, so at most one more message is sent in that time.
        self._idle_since[run.run_id] = now
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            f"no runner has given a sign of life for it for {IDLE_SECS} s, and no message waits for a runner",
        )

    def waits_for_its_code(self, run: DagsterRun) -> bool:
        """Whether a run has another code than this process, and a runner that is there: its message is delayed until
        that one is free, and a new one would give the run our code. Raises BrokerUnreachable."""
        code = run.tags.get(tags.CODE, "")
        if code in ("", code_version()) or not queue_state(self.app, delayed(RUN_QUEUE)).ready:
            return False
        return bool(workers_of(self.app, RUN_QUEUE, code))

    @property
    def supports_resume_run(self) -> bool:
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        self.hand_over(context.dagster_run)
