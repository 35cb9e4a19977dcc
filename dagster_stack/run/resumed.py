"""What the earlier processes of a run have sent and heard."""

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

from dagster import DagsterEvent, DagsterEventType, DagsterInstance

from dagster_stack.run.event_tail import EventTail, is_end

NOTHING: Mapping[str, str] = MappingProxyType({})


class ResumedRun:
    """Steps that an earlier process sent, and their events that this one has not used yet. Empty for a run that starts."""

    def __init__(self, sent: Mapping[str, str] = NOTHING) -> None:
        #: Step keys by the ids of their tasks.
        self._sent = sent
        self._keys = set(sent.values())
        self._said: defaultdict[str, list[DagsterEvent]] = defaultdict(list)

    @classmethod
    def of(cls, instance: DagsterInstance, run_id: str) -> "ResumedRun":
        return cls(sent_before(instance, run_id))

    def was_sent(self, task_id: str) -> bool:
        return task_id in self._sent

    def has_sent(self, step_key: str) -> bool:
        """Whether an attempt of the step was sent."""
        return step_key in self._keys

    def hear(self, event: DagsterEvent) -> None:
        """Keep a step's event for the time when this process comes to that step."""
        assert event.step_key
        self._said[event.step_key].append(event)

    def last_end(self, step_key: str) -> DagsterEvent | None:
        """How the last attempt ended of which this process has not taken the events yet."""
        return next(filter(is_end, reversed(self._said.get(step_key, ()))), None)

    def take_attempt(self, step_key: str) -> list[DagsterEvent]:
        """The events of the next attempt, in order; without an end if it is under way."""
        said = self._said.pop(step_key, [])
        length = next((number for number, event in enumerate(said, 1) if is_end(event)), len(said))
        if said[length:]:
            self._said[step_key] = said[length:]
        return said[:length]


def sent_before(instance: DagsterInstance, run_id: str) -> dict[str, str]:
    """The tasks that were announced in a run so far, each with its step's key."""
    announced = EventTail(instance, run_id, {DagsterEventType.STEP_WORKER_STARTING})
    return {
        str(event.engine_event_data.metadata["task"].value): event.step_key
        for event in announced.read()
        # Other executors announce steps too.
        if event.step_key and "task" in event.engine_event_data.metadata
    }
