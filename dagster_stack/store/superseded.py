"""The reports of a step attempt so far, which count once even if the attempt is executed again."""

from dataclasses import dataclass

import sqlalchemy
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationPlanned,
)
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, DagsterEventType, EngineEventData
from dagster._core.events.log import EventLogEntry

#: Events for which Dagster writes other tables too: they are stored one by one, by Dagster's own code.
INDEXED_EVENTS = {*ASSET_EVENTS, *ASSET_CHECK_EVENTS}
CHECK_DATA = (AssetCheckEvaluation, AssetCheckEvaluationPlanned)
#: The first events of user code in an attempt: the second one when the step is tried again.
STARTS = (DagsterEventType.STEP_START, DagsterEventType.STEP_RESTARTED)

#: What the present attempt of a step has reported so far, of some kinds.
REPORTED = sqlalchemy.text(
    """
    SELECT id, event FROM event_logs
    WHERE run_id = :run AND step_key = :step AND dagster_event_type = ANY(:kinds) AND id > coalesce((
        SELECT max(id) FROM event_logs
        WHERE run_id = :run AND step_key = :step AND dagster_event_type = :retried
    ), 0)
    ORDER BY id
    """
)


@dataclass(frozen=True)
class Reported:
    """The key of an event about an asset: another event with the same key is the same report."""

    event_id: int
    same: tuple[str | None, ...]

    @classmethod
    def of(cls, event: EventLogEntry, event_id: int = 0) -> "Reported":
        reported = event.get_dagster_event()
        data = reported.event_specific_data
        check = data.asset_check_key if isinstance(data, CHECK_DATA) else None
        asset = check.asset_key if check else reported.asset_key
        asset_text = asset.to_string() if asset else None
        check_name = check.name if check else None
        return cls(event_id, (reported.event_type_value, asset_text, check_name, reported.partition))


def superseded(entry: EventLogEntry) -> EventLogEntry:
    """An output of an execution that did not end, as a line that people read and nobody counts.

    Dagster takes each output in a run's log for one of the step's: a re-execution would map its key again.
    """
    event = entry.get_dagster_event()
    message = f"Does not count, since this execution did not end: {event.message}"
    told = event._replace(
        event_type_value=DagsterEventType.ENGINE_EVENT.value,
        event_specific_data=EngineEventData(event.step_output_data.metadata),
        message=message,
    )
    return entry._replace(dagster_event=told, user_message=message)
