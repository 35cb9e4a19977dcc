"""Drives one run: reads what happened, decides what follows, sends ready steps, waits."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterRunStatus,
)
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.executor.base import Executor

from dagster_stack.errors import BrokerUnreachable, Fenced
from dagster_stack.messaging.messages import step_task_id
from dagster_stack.run.dispatch import Dispatch, report
from dagster_stack.run.event_tail import EventTail, is_end
from dagster_stack.run.resumed import ResumedRun
from dagster_stack.store.ledger import ledger_of
from dagster_stack.store.sqlstate import is_away
from dagster_stack.timing import GRACE_SECS

#: Seconds after which the event log is read without a wake-up: what a lost one costs.
POLL_SECS = 5
#: Seconds between two looks for an interrupt, a retry that is due, or a slot of a pool.
TICK_SECS = 0.5
#: Seconds between two readings of the event log at least: many ends that come at once are read at once.
READ_GAP_SECS = 0.03
#: Steps that are announced in one write, then sent.
LAUNCH_SIZE = 50

#: Events that are read back: what decides how the run goes on, and what the caller of `execute_job` looks for.
#: The rest, half of all, tells people how a step was executed; reading it would take as long as all the rest.
TOLD_EVENTS = set(DagsterEventType) - {
    DagsterEventType.ENGINE_EVENT,
    DagsterEventType.LOGS_CAPTURED,
    DagsterEventType.RESOURCE_INIT_STARTED,
    DagsterEventType.RESOURCE_INIT_SUCCESS,
    DagsterEventType.STEP_WORKER_STARTED,
    DagsterEventType.STEP_WORKER_STARTING,
}


class RunLoop:
    """One run being driven: reads what happened, says what follows, sends what is ready, waits."""

    def __init__(
        self,
        executor: Executor,
        context: PlanOrchestrationContext,
        active: ActiveExecution,
        dispatch: Dispatch,
        resumed: ResumedRun,
    ) -> None:
        self._executor = executor
        self._context = context
        self._active = active
        self._dispatch = dispatch
        self._resumed = resumed
        self._tail = EventTail(context.instance, context.run_id, TOLD_EVENTS)
        #: Outputs of the attempt in flight, by step: a lost execution may have reported some of them too.
        self._outputs: defaultdict[str, dict[StepOutputHandle, DagsterEvent]] = defaultdict(dict)
        #: Whether steps wait for whole steps: then outputs count when their step succeeds, those of the execution
        #: that did. Else they count at once, when they are first reported.
        self._whole_steps = executor.step_dependency_config.require_upstream_step_success
        #: Attempts, by step and number of attempts before, whose resources failed.
        self._failed_resources: set[tuple[str, int]] = set()
        self._read_at = 0.0
        self._poll_at = 0.0
        #: Whether the run was ended from outside, or is to be.
        self._is_to_end = False

    def events(self) -> Iterator[DagsterEvent]:
        """Drive the run to its end; yields its events once they stand in the log."""
        if self._context.resume_from_failure:
            yield from self._resume()
        # Nothing is called back after an error: whether it ends the run is known when the run's end is stored.
        self._advance()
        while not self._active.is_complete:
            if self._active.check_for_interrupts() or self._is_to_end:
                yield from self._interrupt()
                return
            yield from self._news()
            self._advance()
            yield from self._look_after()

    # --- what happened ---------------------------------------------------------------------------------

    def _news(self) -> Iterator[DagsterEvent]:
        """Wait until something may be due; what the event log has by then."""
        woken = self._wait()
        now = time.monotonic()
        if now >= self._poll_at:
            # Also while wake-ups come all the time: an end that became visible late must not wait for a pause.
            self._poll_at = now + POLL_SECS
            news = self._tail.look_back()
            self._is_to_end = self._is_to_end_by_hand()
        elif woken:
            news = self._tail.read()
        else:
            return
        self._read_at = now
        yield from self._take(news)

    def _take(self, events: Iterator[DagsterEvent]) -> Iterator[DagsterEvent]:
        for event in events:
            self._account(event)
            yield event

    def _account(self, event: DagsterEvent) -> None:
        """Tell Dagster's bookkeeping the events that it does not know yet; it expects each once."""
        key = event.step_key
        if key is None:
            return
        if key not in self._dispatch.in_flight:
            if self._context.resume_from_failure:
                # Of a step that this process has not come to yet.
                self._resumed.hear(event)
            elif event.is_step_up_for_retry:
                # An attempt that was executed twice. Workers tell by the number of these events which one is due.
                self._active.retry_state.mark_attempt(key)
            return
        if (event.is_step_start or event.is_step_restarted) and self._whole_steps:
            # An execution before this one was lost, and what it reported with it.
            self._outputs.pop(key, None)
        elif event.is_successful_output:
            output = event.step_output_data.step_output_handle
            if output not in self._outputs[key]:
                self._outputs[key][output] = event
                if not self._whole_steps:
                    self._active.handle_event(event)
        elif event.is_resource_init_failure:
            self._fail(key, event)
        elif is_end(event):
            self._end(key, event)

    def _end(self, key: str, event: DagsterEvent) -> None:
        del self._dispatch.in_flight[key]
        outputs = self._outputs.pop(key, {})
        if self._whole_steps and event.is_step_success:
            for output in outputs.values():
                self._active.handle_event(output)
        self._active.handle_event(event)
        if not event.is_step_up_for_retry:
            self._active.verify_complete(self._context, key)

    def _fail(self, key: str, event: DagsterEvent) -> None:
        """A step whose resources failed reports no end of its own: write it, and read it like any other."""
        attempt = (key, self._active.retry_state.get_attempt_count(key))
        if attempt in self._failed_resources:
            return
        self._failed_resources.add(attempt)
        self._active.handle_event(event)
        error = event.engine_event_data.error
        assert error
        self._executor.log_failure_or_retry_event_after_error(
            self._context.for_step(self._dispatch.in_flight[key].step), error, self._active.get_known_state()
        )
        self._poll_at = 0

    def _is_to_end_by_hand(self) -> bool:
        """Whether a run that is executed by hand was terminated in Dagit. A runner learns that when it renews its lease."""
        if ledger_of(self._context.instance).lease:
            return False
        run = self._context.instance.get_run_by_id(self._context.run_id)
        return run is None or run.is_finished or run.status == DagsterRunStatus.CANCELING

    # --- what follows ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        # Skipped steps, and those whose inputs failed; they may make others ready.
        for _ in self._active.plan_events_iterator(self._context):
            pass
        for _ in self._active.concurrency_event_iterator(self._context):
            pass
        while ready := self._active.get_steps_to_execute():
            known = [step for step in ready if self._is_sent(step)]
            new = [step for step in ready if not self._is_sent(step)]
            for first in range(0, len(new), LAUNCH_SIZE):
                self._launch(new[first : first + LAUNCH_SIZE])
            for step in known:
                self._track(step)
            if not known:
                break
        self._dispatch.send(self._context)

    def _launch(self, steps: Sequence[ExecutionStep]) -> None:
        with ledger_of(self._context.instance).batching():
            self._dispatch.announce(self._context, steps, self._active.get_known_state())
        self._dispatch.send(self._context)

    def _look_after(self) -> Iterator[DagsterEvent]:
        if self._dispatch.look_after(self._context):
            # Before anything counts as lost: the whole log, in case an event was missed.
            yield from self._take(self._tail.reread())
            self._dispatch.send_missing_again(self._context)

    # --- waiting ---------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Wait for a wake-up, or until something else may be due; whether one came."""
        now = time.monotonic()
        time.sleep(max(0.0, self._read_at + READ_GAP_SECS - now))
        timeout = max(0.0, min(TICK_SECS, self._poll_at - now))
        try:
            return self._dispatch.link.wait(timeout)
        except BrokerUnreachable:
            time.sleep(timeout)
            return False

    def _interrupt(self) -> Iterator[DagsterEvent]:
        """Call back steps that wait or run; those that do not end within their grace period are killed."""
        # Another process has the run now, and its steps must not be touched.
        ledger_of(self._context.instance).check_lease()
        self._active.mark_interrupted()
        keys = list(self._dispatch.in_flight)
        DagsterEvent.engine_event(
            self._context,
            f"Told to stop: {len(keys)} steps are called back from queues and workers.",
            EngineEventData.interrupted(keys),
        )
        killed = self._dispatch.call_back(self._context.instance)
        if killed:
            report(
                self._context, f"Killed, since they did not end within {GRACE_SECS} s: {', '.join(killed)}."
            )
        yield from self._take(self._tail.read())

    # --- going on ----------------------------------------------------------------------------------------

    def _resume(self) -> Iterator[DagsterEvent]:
        """Go on where an earlier process of this run stopped: what it sent is waited for, not sent twice."""
        report(self._context, "Going on with this run where its earlier process stopped.")
        yield from self._take(self._tail.read())

    def _is_sent(self, step: ExecutionStep) -> bool:
        attempt = self._active.retry_state.get_attempt_count(step.key) + 1
        return self._resumed.was_sent(step_task_id(self._context.run_id, step.key, attempt))

    def _track(self, step: ExecutionStep) -> None:
        """Wait for a step that an earlier process sent; what it reported since is in the log."""
        self._dispatch.track(step, self._active.get_known_state())
        reported = self._resumed.take_attempt(step.key)
        has_ended = any(map(is_end, reported))
        for event in reported:
            if event.is_resource_init_failure and has_ended:
                # What followed from it was written by the earlier process.
                continue
            if event.is_step_up_for_retry:
                # Whatever pause it asked for: what followed it may be in the log already.
                self._account(event._replace(event_specific_data=StepRetryData(event.step_retry_data.error)))
            else:
                self._account(event)
        if not has_ended:
            self._dispatch.go_on_with(step.key)


def goes_on_elsewhere(error: Exception) -> bool:
    """Whether a run does not end with this error: another process has it, or will have it."""
    return isinstance(error, Fenced) or is_away(error)
