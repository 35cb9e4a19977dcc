"""What travels through the broker: messages that start a step or a run. They are JSON, and nothing in them is code."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast
from uuid import NAMESPACE_URL, uuid5

from dagster import DagsterRun
from dagster._core.execution.plan.handle import ResolvedFromDynamicStepHandle, StepHandle
from dagster._core.execution.plan.inputs import FromMultipleSources
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState, PastExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._serdes import deserialize_value, serialize_value

from dagster_stack import tags
from dagster_stack.code_version import code_version
from dagster_stack.project.locations import location_of
from dagster_stack.store.leases import Work

Message = TypeVar("Message", "StepMessage", "RunMessage")

#: Raised with every change of a message that older workers can't read.
VERSION = 2
#: The most bytes of a text that the database takes as a key, and its greatest number.
LONGEST = {"run_id": 255, "step_key": 2000, "code": 255}
GREATEST_ATTEMPT = 2**31 - 1
#: Seconds by which another machine's clock may be ahead.
CLOCK_SKEW_SECS = 24 * 3600


def run_task_id(run_id: str) -> str:
    """The Celery task id under which a run is driven."""
    return str(uuid5(NAMESPACE_URL, f"dagster-stack:{run_id}"))


def step_task_id(run_id: str, step_key: str, attempt: int) -> str:
    """The Celery task id of an attempt: every process computes the same, so none has to remember it."""
    return str(uuid5(NAMESPACE_URL, f"dagster-stack:{run_id}/{step_key}/{attempt}"))


@dataclass(frozen=True)
class StepMessage:
    """One attempt of one step. What the run knows about others is cut down to what this step needs."""

    run_id: str
    step_key: str
    #: From 1.
    attempt: int
    #: Dagster's serialized `KnownExecutionState`.
    known_state: str
    #: The value of Dagster's `RetryMode` for a single step.
    retry_mode: str
    #: The content hash of the code that drives the run.
    code: str
    #: Whether a lost execution may be repeated.
    redeliver: bool
    #: When a worker with other code first handed it back (seconds since 1970), or None.
    refused_at: float | None = None
    #: That of its run; empty in a project of one.
    location: str = ""
    version: int = VERSION

    @property
    def task_id(self) -> str:
        return step_task_id(self.run_id, self.step_key, self.attempt)

    @property
    def work(self) -> Work:
        return Work(self.run_id, self.step_key, self.attempt)

    def to_json(self) -> dict[str, Any]:
        return _plain(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "StepMessage":
        """Raises ValueError for a message that this version can't read."""
        message = _read(StepMessage, content)
        message.unpack_retry_mode()
        if not 1 <= message.attempt <= GREATEST_ATTEMPT:
            raise ValueError(f"attempt is {message.attempt}")
        if not message.step_key:
            raise ValueError("step_key is empty")
        return message

    def unpack_known_state(self) -> KnownExecutionState:
        return deserialize_value(self.known_state, KnownExecutionState)

    def unpack_retry_mode(self) -> RetryMode:
        return RetryMode(self.retry_mode)


@dataclass(frozen=True)
class RunMessage:
    """A run that is to be driven to its end, from its start or from where it is."""

    run_id: str
    #: The content hash of the code that launched it.
    code: str
    refused_at: float | None = None
    #: The code location that it is of; empty in a project of one.
    location: str = ""
    version: int = VERSION

    @property
    def task_id(self) -> str:
        return run_task_id(self.run_id)

    @property
    def work(self) -> Work:
        return Work(self.run_id)

    def to_json(self) -> dict[str, Any]:
        return _plain(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "RunMessage":
        """Raises ValueError for a message that this version can't read."""
        return _read(RunMessage, content)


def _plain(message: "StepMessage | RunMessage") -> dict[str, Any]:
    content = asdict(message)
    if not message.location:
        # Workers of before, which finish their steps during a deployment, know of no such field.
        del content["location"]
    return content


def _read(kind: type[Message], content: Mapping[str, Any]) -> Message:
    version = content.get("version") if isinstance(content, Mapping) else None
    if version != VERSION:
        raise ValueError(f"a message of version {version!r}; this code reads {VERSION}")
    known = {field.name: field.type for field in fields(kind)}
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"unexpected field {unknown[0]}")
    try:
        message = kind(**content)
    except TypeError as error:
        raise ValueError(f"not a message of this stack: {error}") from error
    for name, expected in known.items():
        value = getattr(message, name)
        # To Python, True is a number.
        if not isinstance(value, cast(Any, expected)) or (isinstance(value, bool) and expected is not bool):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, str):
            _check_text(name, value)
    # Not a number that is none, either: it would be late, or early, for ever.
    if message.refused_at is not None and not 0 <= message.refused_at <= time.time() + CLOCK_SKEW_SECS:
        raise ValueError(f"refused_at is {message.refused_at}")
    return message


def _check_text(name: str, text: str) -> None:
    """Raise ValueError for texts of JSON that Postgres does not take: half a character, a NUL, a key of any length."""
    size = len(text.encode())
    if "\0" in text:
        raise ValueError(f"{name} has a NUL in it: {text!r}")
    if size > LONGEST.get(name, size):
        raise ValueError(f"{name} is longer than {LONGEST[name]} bytes")


def step_message(
    run: DagsterRun, step: ExecutionStep, state: KnownExecutionState, retry_mode: RetryMode
) -> StepMessage:
    """The message for a step that is ready; its size depends on the step's inputs, not on the run's."""
    previous = state.previous_retry_attempts.get(step.key, 0)
    return StepMessage(
        run_id=run.run_id,
        step_key=step.key,
        attempt=previous + 1,
        known_state=serialize_value(_needed_by(step, state, previous)),
        retry_mode=retry_mode.value,
        code=code_version(),
        redeliver=tags.may_be_redelivered(step.tags, run.tags),
        location=location_of(run),
    )


def upstream_outputs(step: ExecutionStep) -> Iterator[StepOutputHandle]:
    """The outputs of other steps that a step may load."""
    for step_input in step.step_inputs:
        yield from step_input.get_step_output_handle_dependencies()


def _needed_by(step: ExecutionStep, state: KnownExecutionState, previous: int) -> KnownExecutionState:
    """A run of 10,000 steps would otherwise send the outputs of all of them with each one."""
    needed = set(upstream_outputs(step))
    return KnownExecutionState(
        previous_retry_attempts={step.key: previous} if previous else {},
        dynamic_mappings=state.dynamic_mappings if _collects(step, needed) else {},
        step_output_versions={
            output: version for output, version in state.step_output_versions.items() if output in needed
        },
        ready_outputs=needed & state.ready_outputs,
        parent_state=_past(state.parent_state, needed),
    )


def _collects(step: ExecutionStep, upstream: set[StepOutputHandle]) -> bool:
    """Whether a step gathers a dynamic output: only then it must know all mapping keys."""
    if isinstance(step.handle, ResolvedFromDynamicStepHandle):
        return False
    if any(
        isinstance(each.source, FromMultipleSources) and not each.source.sources for each in step.step_inputs
    ):
        # It collects a dynamic output that turned out to be empty.
        return True
    return any(
        output.mapping_key
        or isinstance(StepHandle.parse_from_key(output.step_key), ResolvedFromDynamicStepHandle)
        for output in upstream
    )


def _past(state: PastExecutionState | None, needed: set[StepOutputHandle]) -> PastExecutionState | None:
    if state is None:
        return None
    return PastExecutionState(
        state.run_id, state.produced_outputs & needed, _past(state.get_parent_state(), needed)
    )
