"""What is known of a run: a frozen snapshot, grown by pure functions from Dagit's answers."""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dagster_stack.client.dagit import RunQueue
from dagster_stack.messaging.management import QueueDepth
from dagster_stack.monitoring.formatting import seconds

#: Statuses after which nothing more happens.
FINISHED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})

#: Seconds over which the rate is averaged: longer than most steps, short enough to show a stall.
RATE_WINDOW_SECS = 10.0

#: Names of steps that wait for another try.
SHOWN_RETRYING = 5

#: Stack frames shown of an exception: the user's own code is at the end.
SHOWN_FRAMES = 3

#: Dagster's wrappers around a user's exception, which say nothing that the step's name does not say.
WRAPPERS = frozenset({"DagsterExecutionStepExecutionError", "RetryRequestedFromPolicy"})

#: The tag that puts a step on another queue than the one below; Dagit shows a step's tags as metadata.
QUEUE_TAG = "dagster-celery/queue"
DEFAULT_QUEUE = "dagster"

#: What Dagster puts for "one per mapping key" into the key of a step that is not yet resolved.
UNRESOLVED = "[?]"

#: The only place where the event of a dynamic output tells its mapping key over GraphQL.
MAPPING_KEY = re.compile(r'mapping key "([^"]*)"')


class StepState(StrEnum):
    """Where a step is; one that is in none of these waits for its turn or for its inputs."""

    RUNNING = "running"
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


#: The events that move a step.
STATE_AFTER_EVENT = {
    "STEP_START": StepState.RUNNING,
    "STEP_RESTARTED": StepState.RUNNING,
    "STEP_UP_FOR_RETRY": StepState.RETRYING,
    "STEP_SUCCESS": StepState.DONE,
    "STEP_FAILURE": StepState.FAILED,
    "STEP_SKIPPED": StepState.SKIPPED,
}


@dataclass(frozen=True)
class ErrorReport:
    """An exception for people: its message, what caused it, and the last lines of its stack."""

    message: str
    causes: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()

    @staticmethod
    def from_answer(error: Mapping[str, Any] | None) -> "ErrorReport | None":
        """Read a GraphQL PythonError; the headline is the user's own exception where there is one."""
        if not error:
            return None
        links = [{"isExplicitLink": True, "error": error}, *(error.get("errorChain") or [])]
        while len(links) > 1 and links[0]["error"]["className"] in WRAPPERS:
            links.pop(0)
        first = links[0]["error"]
        return ErrorReport(
            message=plain_message(first),
            causes=tuple(
                ("caused by " if link["isExplicitLink"] else "while handling ") + plain_message(link["error"])
                for link in links[1:]
            ),
            stack=last_frames(first["stack"]),
        )


@dataclass(frozen=True)
class PlanStep:
    """A step of the execution plan. `source` is the step whose dynamic output a mapped step is run for."""

    key: str
    source: str | None = None
    queue: str = DEFAULT_QUEUE


@dataclass(frozen=True)
class Progress:
    """A run at one moment. `cursor` says up to which event."""

    status: str = "NOT_STARTED"
    plan: tuple[PlanStep, ...] = ()
    steps: Mapping[str, StepState] = field(default_factory=dict)
    mapping_keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    failures: Mapping[str, ErrorReport | None] = field(default_factory=dict)
    #: Why the run as a whole failed or was canceled.
    reason: str | None = None
    error: ErrorReport | None = None
    started_at: float | None = None
    ended_at: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    cursor: str | None = None
    #: Dagit has more events than it gave.
    has_more: bool = False

    def after(self, answer: Mapping[str, Any]) -> "Progress":
        """This snapshot and one more answer to RUN_QUERY."""
        events = answer["eventConnection"]
        progress = replace(
            self,
            status=answer["status"],
            plan=read_plan(answer["executionPlan"]) if answer.get("executionPlan") else self.plan,
            started_at=answer["startTime"],
            ended_at=answer["endTime"],
            tags={tag["key"]: tag["value"] for tag in answer["tags"]},
            cursor=events["cursor"],
            has_more=events["hasMore"],
        )
        return progress._after_events(events["events"])

    def _after_events(self, events: Sequence[Mapping[str, Any]]) -> "Progress":
        steps, failures = dict(self.steps), dict(self.failures)
        mapping_keys = dict(self.mapping_keys)
        reason, error = self.reason, self.error
        for event in events:
            kind, step = event.get("eventType"), event.get("stepKey")
            if step and kind in STATE_AFTER_EVENT:
                steps[step] = STATE_AFTER_EVENT[kind]
                failures.pop(step, None)
                if kind == "STEP_FAILURE":
                    failures[step] = ErrorReport.from_answer(event.get("error"))
            elif step and kind == "STEP_OUTPUT" and (match := MAPPING_KEY.search(event["message"])):
                mapping_keys[step] = mapping_keys.get(step, frozenset()) | {match[1]}
            elif kind in ("RUN_FAILURE", "RUN_CANCELED", "PIPELINE_FAILURE", "PIPELINE_CANCELED"):
                reason = event["message"].strip() or None
                error = ErrorReport.from_answer(event.get("error"))
        return replace(
            self, steps=steps, failures=failures, mapping_keys=mapping_keys, reason=reason, error=error
        )

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def total(self) -> int:
        """Steps of the run. A mapped step counts once until its mapping keys are known, then once a key."""
        return sum(len(self._keys(step)) for step in self.plan)

    @property
    def waiting_on(self) -> frozenset[str]:
        """The queues of the steps that have not yet begun."""
        return frozenset(step.queue for step in self.plan if self._keys(step) - set(self.steps))

    @property
    def known(self) -> bool:
        """Whether the total is final: every dynamic output has told all its mapping keys."""
        return all(step.source is None or self.steps.get(step.source) in ENDED for step in self.plan)

    @property
    def done(self) -> int:
        return self.count(StepState.DONE) + self.count(StepState.SKIPPED)

    def count(self, state: StepState) -> int:
        return sum(1 for known in self.steps.values() if known is state)

    def in_state(self, state: StepState) -> list[str]:
        """The steps in a state, in the order in which they were first heard of."""
        return [step for step, known in self.steps.items() if known is state]

    @property
    def duration(self) -> float | None:
        """Seconds from start to end by Dagster's own clock; None when it never started or has not ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, self.ended_at - self.started_at)

    def _keys(self, step: PlanStep) -> set[str]:
        if step.source is None:
            return {step.key}
        prefix, _, suffix = step.key.partition(UNRESOLVED)
        known = {f"{prefix}[{key}]{suffix}" for key in self.mapping_keys.get(step.source, ())}
        # Should an event hide its mapping key, the steps themselves tell it a little later.
        known |= {key for key in self.steps if key.startswith(f"{prefix}[") and key.endswith(f"]{suffix}")}
        return known if known or self.steps.get(step.source) in ENDED else {step.key}


ENDED = frozenset({StepState.DONE, StepState.FAILED, StepState.SKIPPED})


def read_plan(plan: Mapping[str, Any]) -> tuple[PlanStep, ...]:
    """The plan's steps; a mapped one, however far down its chain, with the step that its keys come from."""
    steps = {step["key"]: step for step in plan["steps"]}

    def source(key: str) -> str | None:
        upstream = [dependency for entry in steps[key]["inputs"] for dependency in entry["dependsOn"]]
        for dependency in upstream:
            if dependency["kind"] == "UNRESOLVED_MAPPED":
                return source(dependency["key"])
        # The dynamic one of several plain inputs can't be told from here: the first is a good guess,
        # and the steps' own keys correct it.
        return upstream[0]["key"] if upstream else None

    return tuple(
        PlanStep(
            key,
            source(key) if step["kind"] == "UNRESOLVED_MAPPED" else None,
            next((tag["value"] for tag in step["metadata"] if tag["key"] == QUEUE_TAG), DEFAULT_QUEUE),
        )
        for key, step in steps.items()
    )


def plain_message(error: Mapping[str, Any]) -> str:
    """Class and message; Dagster's own classes without their module, which is private."""
    message: str = error["message"].strip()
    return re.sub(r"^dagster\.(?:\w+\.)*", "", message)


def last_frames(stack: Sequence[str]) -> tuple[str, ...]:
    """The lines of an exception's last frames, without Dagster's own above the user's."""
    frames = list(stack)[-SHOWN_FRAMES:]
    while len(frames) > 1 and re.search(r'[/\\](dagster|contextlib\.py)[/\\"]', frames[0]):
        frames.pop(0)
    # The marker lines (^^^^) of Python's traceback say little in a terminal of any width.
    return tuple(
        line
        for frame in frames
        for line in frame.rstrip().splitlines()
        if line.strip() and set(line.strip()) - set("^~")
    )


class Rate:
    """Steps per second over the last RATE_WINDOW_SECS, from what was seen when."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def after(self, now: float, done: int) -> float:
        """The rate at `now` (seconds on any steady clock) with `done` steps behind."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_WINDOW_SECS:
            self._seen.popleft()
        first_time, first_done = self._seen[0]
        return max(0.0, (done - first_done) / (now - first_time)) if now > first_time else 0.0


def waiting_for(progress: Progress, queue: RunQueue | None, backlog: Sequence[QueueDepth]) -> str:
    """What the run is waiting for, in one line; empty while steps are at work."""
    match progress.status:
        case "NOT_STARTED" | "QUEUED":
            return waiting_in_queue(queue)
        case "STARTING":
            return "The run's process is starting: it loads the code."
        case "STARTED":
            return waiting_for_steps(progress, backlog)
        case "CANCELING":
            return (
                "Terminating: waiting for the running steps to stop."
                " Ctrl-C leaves the run alone; its page in Dagit can force the end."
            )
    return ""


def waiting_for_steps(progress: Progress, backlog: Sequence[QueueDepth]) -> str:
    """Why no step is at work, or why some never will be."""
    # Others may have left messages in a queue that this run does not use.
    unserved = [
        depth.name
        for depth in backlog
        if depth.ready and not depth.consumers and depth.name in progress.waiting_on
    ]
    if unserved:
        return (
            f"No worker listens on the queue {' or '.join(unserved)}: the run's log says how to start one, unless"
            " `make workers` shows a busy one."
        )
    if progress.count(StepState.RUNNING):
        return ""
    if retrying := progress.in_state(StepState.RETRYING):
        return f"Waiting to try again: {', '.join(retrying[:SHOWN_RETRYING])}."
    if progress.plan and progress.known and not progress.waiting_on:
        return "All steps have ended: waiting for the run to end."
    return "Waiting for the next step to start."


def waiting_in_queue(queue: RunQueue | None) -> str:
    """Why a run is still in the run queue."""
    if queue is None:
        return "In the run queue: dagster-daemon starts the run."
    if not queue.daemon_alive:
        return (
            "In the run queue, but dagster-daemon gives no sign of life: see `docker compose ps daemon`,"
            " start it with `docker compose up -d daemon`."
        )
    if queue.limit is not None and queue.in_progress >= queue.limit:
        return f"In the run queue: {queue.in_progress} runs are in progress, the limit is {queue.limit}."
    return f"In the run queue: dagster-daemon takes it next ({queue.in_progress} runs in progress)."


def summary(progress: Progress, elapsed: float) -> str:
    """The run in one line, such as "SUCCESS in 12.3 s: 50 of 50 steps done"."""
    parts = [f"{progress.done} of {progress.total} steps done"]
    if skipped := progress.count(StepState.SKIPPED):
        parts[0] += f" ({skipped} skipped)"
    if failed := progress.count(StepState.FAILED):
        parts.append(f"{failed} failed")
    if progress.finished and (rest := progress.total - progress.done - failed) > 0:
        parts.append(f"{rest} not finished")
    taken = progress.duration if progress.duration is not None else elapsed
    if progress.status == "SUCCESS" and taken > 0:
        parts.append(f"{progress.done / taken:.1f} steps/s")
    return f"{progress.status} in {seconds(taken, exact=True)}: {', '.join(parts)}"


#: Failed steps whose error is printed; the others are named only.
SHOWN_FAILURES = 10


def failure_report(progress: Progress) -> Iterator[tuple[str, str]]:
    """What went wrong, as (style, line) pairs; the styles are `error`, `plain` and `dim`."""
    failed = list(progress.failures.items())
    for step, error in failed[:SHOWN_FAILURES]:
        yield "error", f"Step {step} failed:"
        yield from error_lines(error)
    if len(failed) > SHOWN_FAILURES:
        names = ", ".join(step for step, _ in failed[SHOWN_FAILURES:])
        yield "error", f"{len(failed) - SHOWN_FAILURES} more steps failed: {names}"
    if progress.reason:
        yield "error", progress.reason.splitlines()[0]
        rest = progress.reason.splitlines()[1:]
        yield from (("plain", f"  {line}") for line in rest)
    # With failed steps the run's own error repeats one of theirs.
    if progress.error and not failed:
        yield from error_lines(progress.error)
    if progress.tags.get("dagster/will_retry") == "true":
        yield "plain", "Dagster starts this run again by itself: its page links to the new run."


def error_lines(error: ErrorReport | None) -> Iterator[tuple[str, str]]:
    if error is None:
        yield "plain", "  Dagster gives no reason: see the step's log."
        return
    yield from (("plain", f"  {line}") for line in error.message.splitlines())
    yield from (("dim", f"  {line}") for line in error.stack)
    for cause in error.causes:
        yield from (("plain", f"  {line}") for line in cause.splitlines())
