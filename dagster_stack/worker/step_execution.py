"""One delivery of a step message on a worker: ask the event log, execute, report, wake the run."""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from celery import Task
from celery.exceptions import Reject
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, MetadataValue
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.context_creation_job import create_context_free_log_manager
from dagster._core.execution.plan.objects import StepFailureData
from dagster._utils.error import serializable_error_info_from_exc_info
from sqlalchemy.exc import DBAPIError

from dagster_stack.broker.link import wake_up
from dagster_stack.broker.messages import StepMessage
from dagster_stack.storage.postgres import PooledEventLogStorage, server_is_away
from dagster_stack.worker.planned_job import planned_job, step_events
from dagster_stack.worker.process import known_run, undisturbed, warm_instance
from dagster_stack.worker.standing import ENDS, standing

logger = logging.getLogger(__name__)

#: Seconds that a message rests before it goes back to its queue because the database stayed away.
REJECT_PAUSE_SECS = 5


def execute_step(task: Task, content: dict[str, Any]) -> None:
    """Execute the step of a message that a Celery task got. Returns once its end is stored, raises Reject else."""
    message = StepMessage.from_json(content)
    worker = task.request.hostname or "a worker"
    try:
        StepExecution(message, worker, lambda: wake_up(task.app, message.run_id)).run()
    except DBAPIError as error:
        if not server_is_away(error):
            raise
        # Nothing can be reported without the database: the step is somebody's who reaches it.
        logger.error("step %s of run %s goes back to its queue: %s", message.step_key, message.run_id, error)
        time.sleep(REJECT_PAUSE_SECS)
        raise Reject(str(error), requeue=True) from error


class StepExecution:
    """One delivery of a step message to this process; `wake_run` is called when its end stands in the log."""

    def __init__(self, message: StepMessage, worker: str, wake_run: Callable[[], None]) -> None:
        self._message = message
        self._worker = worker
        self._wake_run = wake_run

    def run(self) -> None:
        """Execute the step unless the event log objects; how it ends stands in the event log."""
        instance = warm_instance()
        message = self._message
        objection = standing(instance, message.run_id, message.step_key).objection(message.attempt)
        if objection:
            logger.warning("step %s of run %s is skipped: %s", message.step_key, message.run_id, objection)
            self._wake_run()
            return
        run = known_run(message.run_id)
        storage = instance.event_log_storage
        if isinstance(storage, PooledEventLogStorage):
            with storage.batching():
                self._execute(instance, run)
        else:
            self._execute(instance, run)

    def _execute(self, instance: DagsterInstance, run: DagsterRun) -> None:
        message = self._message
        DagsterEvent.step_worker_started(
            create_context_free_log_manager(instance, run),
            run.job_name,
            message=f'Executing step "{message.step_key}" on {self._worker}.',
            metadata={
                "Celery worker": MetadataValue.text(self._worker),
                "pid": MetadataValue.text(str(os.getpid())),
                "attempt": MetadataValue.int(message.attempt),
                "task": MetadataValue.text(message.task_id),
            },
            step_key=message.step_key,
        )
        without_resources = False
        try:
            planned = planned_job(instance, run)
            plan = planned.plan_for(message.step_key, message.unpack_known_state())
            with undisturbed():
                for event in step_events(planned, plan, run, instance, message.unpack_retry_mode()):
                    without_resources = without_resources or event.is_resource_init_failure
                    if event.event_type in ENDS:
                        # At once: hooks and the upload of its output go on while the next step starts.
                        self._wake_run()
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            # Its failure event is stored; the message has done its work.
            logger.warning("step %s of run %s was interrupted", message.step_key, message.run_id)
        except Exception as error:
            if isinstance(error, DBAPIError) and server_is_away(error):
                raise
            if without_resources:
                # That it is in the log is all: the run tries the step again, or fails it.
                self._flush(instance)
                self._wake_run()
            else:
                self._fail(instance, run)

    @staticmethod
    def _flush(instance: DagsterInstance) -> None:
        storage = instance.event_log_storage
        if isinstance(storage, PooledEventLogStorage):
            storage.flush()

    def _fail(self, instance: DagsterInstance, run: DagsterRun) -> None:
        """Report what kept the step from running, such as code that can't be loaded, as its failure."""
        error = serializable_error_info_from_exc_info(sys.exc_info())
        event = DagsterEvent(
            event_type_value=DagsterEventType.STEP_FAILURE.value,
            job_name=run.job_name,
            step_key=self._message.step_key,
            message=f'Step "{self._message.step_key}" could not be executed on {self._worker}.',
            event_specific_data=StepFailureData(error=error, user_failure_data=None),
        )
        instance.report_dagster_event(event, run.run_id, logging.ERROR)
        self._wake_run()
