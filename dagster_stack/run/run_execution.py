"""One delivery of a run message on a runner: acquire the lease of the run and drive it, from its start or from where it is."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import Celery, Task
from celery.result import allow_join_result
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import EngineEventData, JobFailureData, RunFailureReason
from dagster._grpc.impl import core_execute_run
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster._utils.hosted_user_process import recon_job_from_origin
from dagster._utils.interrupts import capture_interrupts

from dagster_stack import definitions, tags
from dagster_stack.code_version import code_version
from dagster_stack.errors import AlreadyDone, AlreadyHeld, Fenced, HandedOver, NoSuchJob, NoSuchRun
from dagster_stack.forks import leave
from dagster_stack.messaging.messages import RunMessage
from dagster_stack.objects.conditions import UNFENCED, Conditions, place_of
from dagster_stack.pool.delivery import deliver, foreign_code, has_worker_of, release
from dagster_stack.pool.isolation.undisturbed import tell_left, undisturbed
from dagster_stack.pool.scratch import has_room, see_to_room
from dagster_stack.pool.warm import holder, warm_instance
from dagster_stack.project import defaults
from dagster_stack.run.eager import EXECUTING
from dagster_stack.run.resumed import sent_before
from dagster_stack.run.run_loop import goes_on_elsewhere
from dagster_stack.run.termination import call_back
from dagster_stack.settings import Settings
from dagster_stack.step import shared_memory
from dagster_stack.step.descendants import Descendants
from dagster_stack.step.interruption import Interruption
from dagster_stack.step.plan_cache import planned_job
from dagster_stack.step.step_folder import step_folder
from dagster_stack.store.lease_renewal import LeaseRenewal
from dagster_stack.store.leases import STOPPED, Lease, Renewal
from dagster_stack.store.ledger import stack_storage
from dagster_stack.worker.lost_processes import KILLED_AT_LIMIT
from dagster_stack.worker.shutdown import is_leaving

logger = logging.getLogger(__name__)

#: A run in these states goes on.
GOING_ON = {DagsterRunStatus.STARTING, DagsterRunStatus.STARTED}

#: Runners that a run may lose in so many seconds before it counts as the cause of their deaths. A run of weeks outlives
#: many restarts of a machine.
MOST_LOSSES = 10
LOSSES_SECS = 24 * 3600


def execute_run(task: Task, content: Any) -> None:
    """Drive the run of a message that a Celery task got. Returns once it ended, raises Reject to hand it over."""
    # The stock executor, in a run of this stack, waits for its steps within this task.
    with allow_join_result():
        deliver(
            task,
            content,
            RunMessage,
            lambda message: RunExecution(task, message, holder(task.request.hostname)),
        )


class RunExecution:
    """One delivery of a run message to this process."""

    def __init__(self, task: Task, message: RunMessage, holder: str) -> None:
        self._task = task
        self._message = message
        self._holder = holder
        self._lease: Lease | None = None
        #: Whether the run may be interrupted: it is being driven, and was not told to stop so far.
        self._is_interruptible = False
        #: Ends a run whose steps are executed by another executor, hence within this runner; None for all others.
        self._interruption: Interruption | None = None
        #: What this process has started for the run.
        self._started = Descendants()
        #: Whether this process stops, and has let go of the run.
        self._is_handed_over = False

    def run(self) -> None:
        """Drive the run; how it ends stands in the event log.

        Raises AlreadyDone, AlreadyHeld while another process drives it, Fenced when one has taken it over meanwhile,
        HandedOver when this one stops, and ForeignCode, NoRoom, NoSuchRun.
        """
        instance = warm_instance()
        storage = stack_storage(instance)
        assert storage, "runners need the storage of this stack"
        run = self._admit(instance)
        if not has_room() and not defaults.uses_workers(
            loaded_job(instance, run).get_definition(), run.run_config
        ):
            # Its steps are executed here.
            see_to_room(
                self._message.work, self._holder, lambda text: instance.report_engine_event(text, run)
            )
        lease = self._lease = storage.leases.acquire(self._message.work, self._holder)
        if lease is None:
            raise AlreadyHeld(f"{self._message.work} is with another runner, which is alive")
        left: list[str] = []
        with (
            storage.holding(lease),
            LeaseRenewal(storage.leases, lease, self._heard, is_leaving),
            undisturbed(left.append),
            shared_memory.cleared(),
            self._started,
            capture_interrupts(),
        ):
            self._is_interruptible = True
            try:
                self._drive(instance, self._adopted(instance))
            except Fenced as error:
                if self._is_handed_over:
                    raise HandedOver("this runner stops") from error
                raise
            finally:
                self._is_interruptible = False
        if left:
            tell_left(instance, run, "The run", left)
        storage.leases.release(lease)
        if self._is_handed_over:
            raise HandedOver("this runner stops")

    def hand_over(self, reason: str) -> None:
        """Release the lease, so the runner that gets the message next begins at once."""
        release(self._lease, reason)

    def skip(self) -> None:
        """Call the steps of a canceled run back: after a termination by force, with its runner dead, nobody has done so."""
        instance = warm_instance()
        run = instance.get_run_by_id(self._message.run_id)
        if run and run.status == DagsterRunStatus.CANCELED:
            call_back(self._task.app, instance, run.run_id, [])

    def _admit(self, instance: DagsterInstance) -> DagsterRun:
        """The run as it is now. Raises AlreadyDone, NoSuchRun, ForeignCode, OldDefinitions."""
        run = instance.get_run_by_id(self._message.run_id)
        if run is None:
            raise NoSuchRun(
                f"nobody knows {self._message.work}: it was deleted, or belongs to another database"
            )
        if run.is_finished:
            raise AlreadyDone(f"it is {run.status.value}")
        foreign_code(self._message, run.tags.get(tags.CODE, ""), lambda code: has_worker_of(self._task, code))
        definitions.require(instance, run)
        definitions.compare(instance, run, lambda: planned_job(instance, run).definition)
        return run

    def _adopted(self, instance: DagsterInstance) -> DagsterRun:
        """The same run, which goes on with this process's code."""
        run = self._admit(instance)
        theirs, ours = run.tags.get(tags.CODE, ""), code_version()
        if theirs and ours and theirs != ours:
            instance.report_engine_event(
                f"No runner with its code {theirs} is left: it goes on with {ours}.", run
            )
            instance.add_run_tags(run.run_id, {tags.CODE: ours})
        return run

    def _heard(self, sign: Renewal | None) -> None:
        """What the database says while the run is driven: whether it is to be stopped."""
        if not self._is_interruptible:
            return
        if sign and is_leaving():
            # A step that this process executes itself may end first; the next one sees that this runner stops.
            if EXECUTING.locked():
                return
            logger.info(
                "%s is handed over: this runner stops",
                self._message.work,
                extra={"action": "run.handed_over"},
            )
            release(self._lease, STOPPED)
            self._is_handed_over = True
            sign = None
        status = DagsterRunStatus(sign.run_status) if sign and sign.run_status else None
        if status not in GOING_ON:
            self._is_interruptible = False
            if self._interruption:
                self._interruption.begin(
                    f"it is {status.value}" if status else "this runner does not drive it any more"
                )
            else:
                os.kill(os.getpid(), signal.SIGINT)

    def _drive(self, instance: DagsterInstance, run: DagsterRun) -> None:
        assert self._lease
        if run.status == DagsterRunStatus.CANCELING:
            cancel(self._task.app, instance, run)
            return
        if reason := lost_too_often(self._lease):
            instance.report_run_failed(run, reason)
            return
        job = loaded_job(instance, run)
        goes_on = run.status == DagsterRunStatus.STARTED
        is_ours = defaults.uses_workers(job.get_definition(), run.run_config)
        if goes_on and not is_ours:
            instance.report_run_failed(run, steps_ended_with_runner(self._lease))
            return
        if goes_on:
            logger.info(
                "%s goes on where its earlier process stopped",
                self._message.work,
                extra={"action": "run.resumed"},
            )
        if tags.TIMEOUT in run.tags and not is_ours:
            instance.report_engine_event(
                f"The tag {tags.TIMEOUT} has no effect on the steps of this job's executor.", run
            )
        if not is_ours and (advice := defaults.advice(job.get_definition())):
            instance.report_engine_event(advice, run)
        say_unfenced(instance, run)
        try:
            with ExitStack() as within:
                if not is_ours:
                    within.enter_context(step_folder(self._lease))
                    within.enter_context(self._interruptible())
                for event in core_execute_run(
                    job, run, instance, inject_env_vars=True, resume_from_failure=goes_on
                ):
                    tell_error(instance, run, event)
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            logger.info("%s was interrupted", self._message.work, extra={"action": "run.interrupted"})
        except Exception as error:
            if goes_on_elsewhere(error) or not self._has_ended(instance):
                raise
            # Dagster has failed the run, with the reason in its log. Now no process goes on with it.
            logger.exception("%s failed", self._message.work, extra={"action": "run.failed"})
            call_back(self._task.app, instance, run.run_id, list(sent_before(instance, run.run_id)))

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """For steps within this process, which is ended when they work on after an interrupt; so are its children."""
        process = os.getpid()
        with Interruption(self._message.work) as interruption:
            interruption.before_end = self._started.kill
            self._interruption = interruption
            try:
                yield
            finally:
                if os.getpid() != process:
                    leave()
                self._interruption = None

    def _has_ended(self, instance: DagsterInstance) -> bool:
        run = instance.get_run_by_id(self._message.run_id)
        return run is None or run.is_finished


def lost_too_often(lease: Lease) -> str:
    """Why a run is not driven again that has lost its runner again and again; "" for any other."""
    recent = [
        loss
        for loss in lease.before
        if loss.reason not in {STOPPED, KILLED_AT_LIMIT} and loss.at > time.time() - LOSSES_SECS
    ]
    if len(recent) < MOST_LOSSES:
        return ""
    return f"It lost its runner {len(recent)} times within a day: {'; '.join(map(str, recent))}."


def steps_ended_with_runner(lease: Lease) -> str:
    """Why a run can't go on whose executor has the steps in the runner."""
    reason = f"Its runner was lost: {lease.losses[-1]}." if lease.losses else "Its runner was stopped."
    return (
        f"{reason} The steps of this job's executor ended with it. If run retries are on (run_retries in"
        " dagster.yaml), it starts again from the steps that had not ended."
    )


def say_unfenced(instance: DagsterInstance, run: DagsterRun) -> None:
    """Say once in a run's log that its outputs may be overwritten late, where the S3 store can't refuse that."""
    storage, s3 = stack_storage(instance), Settings.from_environment().s3
    if s3 and storage:
        conditions = Conditions(place_of(s3.bucket, s3.endpoint_url), storage.facts)
        if conditions.to_be_told(run.run_id):
            instance.report_engine_event(UNFENCED, run)


def loaded_job(instance: DagsterInstance, run: DagsterRun) -> ReconstructableJob:
    """A run's job; raises NoSuchJob, and fails the run, when this process's code does not have it."""
    try:
        assert run.job_code_origin, "the run does not say where its code is"
        job = recon_job_from_origin(run.job_code_origin)
        job.get_definition()
    except Exception as error:
        if goes_on_elsewhere(error):
            raise
        failure = JobFailureData(serializable_error_info_from_exc_info(sys.exc_info()))
        instance.report_run_failed(run, f"Job {run.job_name} can't be loaded by the runner.", failure)
        raise NoSuchJob(f"job {run.job_name} of run {run.run_id} can't be loaded: {error}") from error
    return job


def tell_error(instance: DagsterInstance, run: DagsterRun, event: DagsterEvent) -> None:
    """Write a failure that came from no step into the run's log: Dagit shows of it only that there was an error."""
    if event.event_type == DagsterEventType.PIPELINE_FAILURE:
        failure = event.job_failure_data
        if failure.error and failure.failure_reason != RunFailureReason.STEP_FAILURE:
            text = f"The run failed, and not by a step: {failure.error.message.strip()}"
            instance.report_engine_event(text, run, EngineEventData.engine_error(failure.error))


def cancel(app: Celery, instance: DagsterInstance, run: DagsterRun) -> None:
    """End a run that was to be stopped and has lost its runner."""
    call_back(app, instance, run.run_id, list(sent_before(instance, run.run_id)))
    instance.report_run_canceled(run)
