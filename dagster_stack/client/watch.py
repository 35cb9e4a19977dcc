"""Follows a run from its launch to its end on the terminal."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import requests

from dagster_stack.client.dagit import Dagit, RunQueue
from dagster_stack.client.display import Frame, View
from dagster_stack.client.interrupts import SIGNALS, Interrupts
from dagster_stack.client.progress import Progress, Rate, failure_report, summary, waiting_for
from dagster_stack.errors import DagitError, DagitUnreachable, ExitCode
from dagster_stack.messaging.management import BrokerApi, QueueDepth
from dagster_stack.monitoring.formatting import seconds

#: Seconds between two questions to Dagit: a step's end shows soon, and an answer costs Dagit some 20 ms.
POLL_INTERVAL_SECS = 0.5
#: Seconds between two looks at the queues: RabbitMQ itself counts only every 5 s.
BACKLOG_INTERVAL_SECS = 2.5
#: Seconds until the queues are looked at again after RabbitMQ did not answer.
BACKLOG_PAUSE_SECS = 15.0
#: Seconds between two questions why the run is still queued.
QUEUE_INTERVAL_SECS = 5.0
#: Seconds that Dagit may be away while a run is watched: a restart of its container takes 10 to 30.
OUTAGE_LIMIT_SECS = 120.0
#: Seconds in which a run that can't be terminated yet (its process is starting) is asked again.
TERMINATE_LIMIT_SECS = 30.0

EXIT_CODES = {
    "SUCCESS": ExitCode.SUCCESS,
    "FAILURE": ExitCode.FAILED,
    "CANCELED": ExitCode.CANCELED,
}


@dataclass(frozen=True)
class Request:
    """What the user wants run."""

    job: str
    config_yaml: str = ""
    tags: Mapping[str, str] | None = None
    location: str | None = None


class Watch:
    """Launches one run and follows it until it ends or the user leaves."""

    def __init__(
        self,
        dagit: Dagit,
        view: View,
        broker: BrokerApi | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_id = ""
        self._dagit = dagit
        self._view = view
        self._broker = broker
        self._now = now
        self._launched_at = 0.0
        self._rate = Rate()
        self._backlog: tuple[QueueDepth, ...] = ()
        self._backlog_due = 0.0
        self._queue: RunQueue | None = None
        self._queue_due = 0.0

    def run(self, request: Request) -> ExitCode:
        """Launch, follow, report. Raises StackError when no run was launched, or Dagit is lost for good."""
        try:
            with Interrupts() as interrupts:
                return self._run(request, interrupts)
        except KeyboardInterrupt:
            self._leave()
            return ExitCode.INTERRUPTED

    def _run(self, request: Request, interrupts: Interrupts) -> ExitCode:
        job = self._dagit.find_job(request.job, request.location)
        if interrupts.received:
            self._leave()
            return ExitCode.INTERRUPTED
        self.run_id = self._dagit.launch(job, request.config_yaml, request.tags or {})
        self._launched_at = self._now()
        self._view.say(f"Launched {job.name}: {self._dagit.run_page(self.run_id)}")
        with self._view.live():
            progress = self._follow(interrupts)
        if progress is None:
            self._leave()
            return ExitCode.INTERRUPTED
        self._report(progress)
        return EXIT_CODES[progress.status]

    def _follow(self, interrupts: Interrupts) -> Progress | None:
        """The finished run, or None when the user leaves it going."""
        progress = Progress()
        lost_at: float | None = None
        while True:
            if interrupts.received and not self._stay(interrupts, progress):
                return None
            try:
                progress = self._read(progress)
                lost_at = None
                if progress.finished:
                    # Once more from the first event: in Postgres an event can become visible after a
                    # later one was read, and the cursor has then gone past it.
                    progress = self._read(Progress())
            except DagitUnreachable as error:
                lost_at = self._now() if lost_at is None else lost_at
                if self._now() - lost_at > OUTAGE_LIMIT_SECS:
                    raise DagitUnreachable(
                        f"{error}\nThe run {self.run_id} was launched and goes on without this command."
                    ) from error
            self._show(progress, lost_at)
            if progress.finished and lost_at is None:
                return progress
            interrupts.wait(POLL_INTERVAL_SECS)

    def _read(self, progress: Progress) -> Progress:
        progress = progress.after(self._dagit.run(self.run_id, progress.cursor, with_plan=not progress.plan))
        while progress.has_more:
            progress = progress.after(self._dagit.run(self.run_id, progress.cursor, with_plan=False))
        return progress

    def _show(self, progress: Progress, lost_at: float | None) -> None:
        now = self._now()
        if lost_at is not None:
            note = (
                "Dagit does not answer: the run goes on, waiting for Dagit"
                f" for at most {seconds(OUTAGE_LIMIT_SECS, exact=True)}."
            )
        else:
            if not progress.finished:
                self._look_at_queues(progress, now)
            note = waiting_for(progress, self._queue, self._backlog)
        rate = self._rate.after(now, progress.done)
        self._view.show(Frame(progress, now - self._launched_at, rate, self._backlog, note))

    def _look_at_queues(self, progress: Progress, now: float) -> None:
        """Refresh what the run waits for, if it is time. That is an extra: its errors stop nothing."""
        if self._broker and now >= self._backlog_due:
            try:
                self._backlog = self._broker.read()
                self._backlog_due = now + BACKLOG_INTERVAL_SECS
            except (requests.RequestException, ValueError):
                self._backlog = ()
                self._backlog_due = now + BACKLOG_PAUSE_SECS
        if progress.status in ("NOT_STARTED", "QUEUED") and now >= self._queue_due:
            # Not in the first seconds: most runs leave the queue before the answer is of use.
            if self._queue_due:
                try:
                    self._queue = self._dagit.run_queue()
                except DagitError:
                    self._queue = None
            self._queue_due = now + QUEUE_INTERVAL_SECS

    def _stay(self, interrupts: Interrupts, progress: Progress) -> bool:
        """Answer a signal: True to go on watching, with the run's end asked for."""
        received = interrupts.received
        if received != SIGNALS[0] or not self._view.interactive:
            return False
        if not self._view.ask("Terminate the run?", interrupts.wait_for_input):
            return False
        interrupts.forget()
        give_up_at = self._now() + TERMINATE_LIMIT_SECS
        while True:
            try:
                self._dagit.terminate(self.run_id)
                return True
            except DagitError as error:
                try:
                    ended = self._read(progress).finished
                except DagitUnreachable:
                    ended = False
                if ended:
                    return True
                if self._now() > give_up_at:
                    self._view.say(str(error), "error")
                    return False
            interrupts.wait(POLL_INTERVAL_SECS)

    def _leave(self) -> None:
        if self.run_id:
            self._view.say(f"Left the run going: {self._dagit.run_page(self.run_id)}", "note")
        else:
            self._view.say("Interrupted before a run was launched.", "note")

    def _report(self, progress: Progress) -> None:
        if progress.status == "FAILURE":
            for style, line in failure_report(progress):
                self._view.say(line, style)
        elif progress.status == "CANCELED" and progress.reason:
            self._view.say(progress.reason)
        style = "good" if progress.status == "SUCCESS" else "error"
        self._view.say(summary(progress, self._now() - self._launched_at), style)
        self._view.say(f"Run page: {self._dagit.run_page(self.run_id)}")
