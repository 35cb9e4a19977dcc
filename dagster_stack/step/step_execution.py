"""One delivery of a step message on a worker: acquire the lease of the step, execute it, report, wake the run."""

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

from celery import Task
from dagster import (
    DagsterEvent,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    MetadataValue,
)
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.context_creation_job import create_context_free_log_manager
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.step import ExecutionStep

from dagster_stack import definitions, tags
from dagster_stack.code_version import code_version
from dagster_stack.errors import AlreadyDone, AlreadyHeld, Fenced, ForeignCode, NoSuchJob, NoSuchRun
from dagster_stack.failure_reasons import Reason
from dagster_stack.forks import leave
from dagster_stack.messaging.messages import StepMessage
from dagster_stack.messaging.run_connection import wake_up
from dagster_stack.pool.delivery import deliver, foreign_code, has_worker_of, release
from dagster_stack.pool.isolation.undisturbed import tell_left, undisturbed
from dagster_stack.pool.own_process import Order, execute_apart
from dagster_stack.pool.scratch import see_to_room
from dagster_stack.pool.warm import holder, warm_instance
from dagster_stack.step import repetition, shared_memory
from dagster_stack.step.admission import ENDED_RUN, objection
from dagster_stack.step.descendants import Descendants
from dagster_stack.step.interruption import Interruption
from dagster_stack.step.pids import naming_limit
from dagster_stack.step.plan_cache import PlannedJob, planned_job
from dagster_stack.step.repetition import Refusal
from dagster_stack.step.step_context import step_events
from dagster_stack.step.step_failure import flush, report_failure
from dagster_stack.step.step_folder import step_folder
from dagster_stack.step.time_limit import Deadline, TimeLimit
from dagster_stack.store.event_log import ENDS, PooledEventLogStorage
from dagster_stack.store.lease_renewal import LeaseRenewal
from dagster_stack.store.leases import Lease, Renewal
from dagster_stack.store.ledger import ledger_of, stack_storage
from dagster_stack.store.sqlstate import is_away
from dagster_stack.store.superseded import STARTS
from dagster_stack.timing import FOREIGN_CODE_SECS, GRACE_SECS
from dagster_stack.worker.lost_processes import KILLED_AT_LIMIT
from dagster_stack.worker.shutdown import is_leaving

logger = logging.getLogger(__name__)

#: The errors that an interrupt raises in a step, by name.
INTERRUPTS = {KeyboardInterrupt.__name__, DagsterExecutionInterruptedError.__name__}
#: How a run ends by itself: the hooks of a step whose end it knows go on.
ENDED_BY_ITSELF = {DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE}


def execute_step(task: Task, content: Any) -> None:
    """Execute the step of a message that a Celery task got. Returns once its end is stored, raises Reject else."""

    def execution(message: StepMessage) -> StepExecution:
        return StepExecution(
            message,
            holder(task.request.hostname),
            wake_run=lambda: wake_up(task.app, message.run_id),
            has_worker_of=lambda code: has_worker_of(task, code),
            celery_limits=getattr(task.request, "timelimit", None),
        )

    deliver(task, content, StepMessage, execution)


class Admitted(NamedTuple):
    """A step that is to be executed: its run as it is now, and whether it has another code than this process."""

    run: DagsterRun
    foreign_code: ForeignCode | None


class StepExecution:
    """One delivery of a step message to this process.

    `wake_run` is called when its end stands in the log. `has_worker_of` is asked before it fails for want of a worker with
    its code. `within`: this process drives the run itself, with that instance and job; the run's lease, if any, decides
    what counts. `celery_limits` are the seconds, hard and soft, that Celery gives a step without a limit of its own.
    """

    def __init__(
        self,
        message: StepMessage,
        holder: str,
        wake_run: Callable[[], None],
        has_worker_of: Callable[[str], bool] = lambda _: False,
        *,
        within: tuple[DagsterInstance, PlannedJob] | None = None,
        celery_limits: Sequence[float | None] | None = None,
        is_in_own_process: bool = False,
    ) -> None:
        self._message = message
        self._holder = holder
        self._wake_run = wake_run
        self._has_worker_of = has_worker_of
        self._within = within
        self._celery_limits = celery_limits
        #: Whether this process may be ended: not one of somebody who waits for `execute_job`.
        self._is_service = within is None
        self._deadline: Deadline | None = None
        self._is_in_own_process = is_in_own_process
        self._lease: Lease | None = None
        self._interruption = Interruption(message.work)
        #: What the step's process has started, and of that what the op has, not its resources.
        self._started = Descendants()
        self._started_by_op = Descendants()
        #: Whether its end stands in the event log.
        self.has_ended = False
        #: Whether it was interrupted from outside, or not begun since its run is to end.
        self.was_interrupted = False

    def run(self) -> None:
        """Execute the step; how it ends stands in the event log.

        Raises AlreadyDone where the event log objects, AlreadyHeld while another process executes it, Fenced when one has taken it over meanwhile, and
        ForeignCode, NoRoom, NoSuchRun, NoSuchJob.
        """
        instance = self._within[0] if self._within else warm_instance()
        run, foreign = self._admit(instance)
        if not self._within:
            step = self._message.step_key
            see_to_room(
                self._message.work,
                self._holder,
                lambda text: instance.report_engine_event(text, run, step_key=step),
            )
        storage = stack_storage(instance)
        if not storage:
            self._execute(instance, run)
            return
        # Who drives the run sends the interrupt that ends it.
        self._interruption.is_sent_elsewhere = storage.lease is not None
        self._is_service = self._within is None or storage.lease is not None
        lease = self._lease = storage.leases.acquire(self._message.work, self._holder)
        if lease is None:
            raise AlreadyHeld(f"{self._message.work} is with another process, which is alive")
        if lease.epoch > 1:
            # It may have ended while this process asked for it.
            run, foreign = self._admit(instance)
        with storage.holding(lease):
            refusal = self._refusal(foreign, lease, storage)
            if any(loss.reason == KILLED_AT_LIMIT for loss in lease.losses):
                self._fail_at_limit(instance, run)
            elif refusal:
                self._fail(instance, run, *refusal)
            else:
                signs = LeaseRenewal(storage.leases, lease, self._heard, is_leaving)
                with self._interruption, signs, storage.batching(self._before_failure):
                    self._execute(instance, run)
        storage.leases.release(lease)

    def execute_leased(self, lease: Lease | None) -> None:
        """Execute the step in its own process, whose parent holds its lease; raises what `run` does."""
        self._lease = lease
        instance = warm_instance()
        run = instance.get_run_by_id(self._message.run_id)
        if run is None:
            raise NoSuchRun(f"nobody knows run {self._message.run_id}: it was deleted meanwhile")
        storage = stack_storage(instance)
        if lease and storage:
            with storage.holding(lease), self._interruption, storage.batching(self._before_failure):
                self._execute(instance, run)
        else:
            self._execute(instance, run)

    def hand_over(self, reason: str) -> None:
        """Release the lease, so the process that gets the message next begins at once."""
        release(self._lease, reason)

    def skip(self) -> None:
        """Wake the run, which may have missed the step's end."""
        # One that ends, or has ended, waits for nothing.
        if not self.was_interrupted:
            self._wake_run()

    def _admit(self, instance: DagsterInstance) -> Admitted:
        """Raises AlreadyDone, NoSuchRun, ForeignCode, OldDefinitions."""
        message = self._message
        found = ledger_of(instance).attempt_state(message.run_id, message.step_key)
        if found.run is None:
            raise NoSuchRun(
                f"nobody knows run {message.run_id}: it was deleted, or belongs to another database"
            )
        if reason := objection(found, message.attempt):
            self.was_interrupted = found.run.status in ENDED_RUN
            raise AlreadyDone(reason)
        if self._within:
            return Admitted(found.run, None)
        # What the run says wins: `init` gives a run that goes on after a deployment its new code.
        foreign = foreign_code(message, found.code or message.code, self._has_worker_of)
        definitions.require(instance, run := found.run)
        definitions.compare(instance, run, lambda: planned_job(instance, run).definition)
        return Admitted(run, foreign)

    def _refusal(
        self, foreign: ForeignCode | None, lease: Lease, storage: PooledEventLogStorage
    ) -> Refusal | None:
        """Why the step is not to be executed, if so."""
        if foreign:
            return Refusal(
                Reason.FOREIGN_CODE,
                f"No worker with the code of its run has taken it for {FOREIGN_CODE_SECS} s. {foreign}",
            )
        return repetition.refusal(lease, self._message.redeliver, storage)

    def _heard(self, sign: Renewal | None) -> None:
        """What the database says while the step is executed."""
        status = DagsterRunStatus(sign.run_status) if sign and sign.run_status else None
        if sign is None:
            self._interruption.begin("another process has taken it over")
        elif status is None:
            self._interruption.begin("its run was deleted")
        elif status in ENDED_RUN and not (self.has_ended and status in ENDED_BY_ITSELF):
            self._interruption.begin(f"its run is {status.value}")

    def _execute(self, instance: DagsterInstance, run: DagsterRun) -> None:
        planned, plan = self._load(instance, run)
        if self._wants_own_process(run, plan):
            epoch = self._lease.epoch if self._lease else None
            order = Order(self._message, self._holder, epoch, self._celery_limits)
            try:
                with shared_memory.cleared(), self._started:
                    self.was_interrupted = execute_apart(order, ended=self._note_end, woken=self._wake_run)
            except OSError:
                self._fail(instance, run, Reason.NOT_EXECUTED, f"It could not be executed on {self._holder}.")
        else:
            self._execute_here(instance, run, planned, plan)

    def _execute_here(
        self, instance: DagsterInstance, run: DagsterRun, planned: PlannedJob, plan: ExecutionPlan
    ) -> None:
        lease = self._lease
        self._report_start(instance, run)
        without_resources = is_late = False
        left: list[str] = []
        limit = self._limit(plan, run)
        # Without a lease the loss of a killed process would not be noticed.
        kills = self._is_service and lease is not None
        deadline = self._deadline = Deadline(limit, self._interruption, kills) if limit else None
        try:
            with (
                undisturbed(left.append),
                step_folder(lease),
                shared_memory.cleared(),
                deadline or nullcontext(),
                self._ended_with_step(instance, run),
                closing(self._events(planned, plan, run, instance, deadline)) as events,
            ):
                for event in events:
                    without_resources = without_resources or event.is_resource_init_failure
                    if event.event_type in ENDS:
                        self.has_ended = True
                        if deadline:
                            deadline.is_met()
                        self.was_interrupted = is_interrupt(event)
                        # At once: hooks and the upload of its output go on while the next step starts.
                        self._wake_run()
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            # Its failure event is stored: the message has done its work. Without that event its resources took too long.
            of_limit = bool(deadline and deadline.has_passed)
            is_late = of_limit and not self.has_ended
            # A limit that passes as the step ends is not meant for its run.
            self.was_interrupted = not of_limit
            logger.warning("%s was interrupted", self._message.work, extra={"action": "step.interrupted"})
        except Fenced:
            raise
        except Exception as error:
            if is_away(error):
                raise
            if without_resources:
                # That it is in the log is all: the run tries the step again, or fails it.
                flush(instance)
                self._wake_run()
            else:
                self._fail(instance, run, Reason.NOT_EXECUTED, f"It could not be executed on {self._holder}.")
        finally:
            if left:
                step_key = self._message.step_key
                tell_left(instance, run, f'Step "{step_key}"', left, step_key)
        if is_late:
            self._fail_at_limit(instance, run)

    def _report_start(self, instance: DagsterInstance, run: DagsterRun) -> None:
        """Say in the run's log where the step is executed, and for which time."""
        message, lease = self._message, self._lease
        DagsterEvent.step_worker_started(
            create_context_free_log_manager(instance, run),
            run.job_name,
            message=f'Executing step "{message.step_key}" on {self._holder}.',
            metadata={
                "Celery worker": MetadataValue.text(self._holder.partition(" ")[0]),
                "pid": MetadataValue.text(str(os.getpid())),
                "attempt": MetadataValue.int(message.attempt),
                "execution": MetadataValue.int(lease.epoch if lease else 1),
                "task": MetadataValue.text(message.task_id),
                "code": MetadataValue.text(code_version()),
            },
            step_key=message.step_key,
        )

    def _load(self, instance: DagsterInstance, run: DagsterRun) -> tuple[PlannedJob, ExecutionPlan]:
        """The run's job, and the plan of this step; raises NoSuchJob, and fails the step, when it can't be loaded."""
        message = self._message
        try:
            planned = self._within[1] if self._within else planned_job(instance, run)
            return planned, planned.plan_for(message.step_key, message.unpack_known_state())
        except Exception as error:
            if is_away(error):
                raise
            self._fail(instance, run, Reason.NOT_EXECUTED, f"It could not be loaded on {self._holder}.")
            raise NoSuchJob(
                f"step {message.step_key} of job {run.job_name} can't be loaded: {error}"
            ) from error

    def _limit(self, plan: ExecutionPlan, run: DagsterRun) -> TimeLimit | None:
        step_tags = plan.get_step_by_key(self._message.step_key).tags or {}
        return TimeLimit.of(step_tags, run.tags, self._celery_limits)

    def _fail_at_limit(self, instance: DagsterInstance, run: DagsterRun) -> None:
        """Report an execution that took too long, of which Dagster can't tell any more, by the op's retry policy."""
        message = self._message
        planned, plan = self._load(instance, run)
        step = plan.get_step_by_key(message.step_key)
        assert isinstance(step, ExecutionStep)
        limit = self._limit(plan, run)
        why = (
            f"It took longer than its limit of {limit}, and was interrupted" if limit else "It took too long"
        )
        if not (self._deadline and self._deadline.has_passed):
            why += f". It did not end within {GRACE_SECS} s, and its process was killed"
        policy = planned.definition.get_retry_policy_for_handle(step.node_handle)
        is_tried_again = (
            policy and not message.unpack_retry_mode().disabled and message.attempt <= policy.max_retries
        )
        self._fail(
            instance,
            run,
            Reason.TIME_LIMIT,
            f"{why}.",
            tried_again_after=policy.calculate_delay(message.attempt) if policy and is_tried_again else None,
        )

    def _wants_own_process(self, run: DagsterRun, plan: ExecutionPlan) -> bool:
        if self._within or self._is_in_own_process:
            return False
        step_tags = plan.get_step_by_key(self._message.step_key).tags or {}
        return tags.isolation(step_tags, run.tags) == tags.PROCESS

    def _note_end(self) -> None:
        self.has_ended = True

    def _events(
        self,
        planned: PlannedJob,
        plan: ExecutionPlan,
        run: DagsterRun,
        instance: DagsterInstance,
        deadline: Deadline | None,
    ) -> Generator[DagsterEvent, None, None]:
        """The step's events, as they come; a forked child that comes back to here ends."""
        process = os.getpid()
        retry_mode = self._message.unpack_retry_mode()
        for event in step_events(planned, plan, run, instance, retry_mode, deadline=deadline):
            if os.getpid() != process:
                leave()
            if event.event_type in STARTS:
                # What runs by now belongs to the step's resources, which outlive the op.
                self._started_by_op.__enter__()
            yield event

    @contextmanager
    def _ended_with_step(self, instance: DagsterInstance, run: DagsterRun) -> Iterator[None]:
        process = os.getpid()
        self._interruption.before_end = self._started.kill
        try:
            with self._started:
                try:
                    yield
                except BaseException:
                    if os.getpid() != process:
                        leave()
                    raise
        finally:
            told = [*self._started_by_op.told, *self._started.told]
            if told:
                with suppress(Exception):
                    instance.report_engine_event(
                        f"Processes that the step had left running were ended: {'; '.join(told)}.",
                        run,
                        step_key=self._message.step_key,
                    )

    def _before_failure(self, entry: EventLogEntry) -> EventLogEntry:
        """What the op has started is gone before another execution may begin; its resources still need theirs."""
        self._started_by_op.end()
        return naming_limit(entry)

    def _fail(
        self,
        instance: DagsterInstance,
        run: DagsterRun,
        reason: Reason,
        text: str,
        tried_again_after: float | None = None,
    ) -> None:
        report_failure(
            instance, run, self._message.step_key, reason, text, tried_again_after=tried_again_after
        )
        self._wake_run()


def is_interrupt(event: DagsterEvent) -> bool:
    """Whether an attempt ended by an interrupt: one with a retry policy is up for retry, as after any error."""
    error = event.step_retry_data.error if event.is_step_up_for_retry else None
    return bool(error and error.cause and error.cause.cls_name in INTERRUPTS)
