"""The failure of a step that Dagster itself does not report."""

import logging
import sys

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, MetadataValue
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData, UserFailureData
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo

from dagster_stack.errors import Refused
from dagster_stack.failure_reasons import LABEL, Reason
from dagster_stack.store.ledger import ledger_of


def report_failure(
    instance: DagsterInstance,
    run: DagsterRun,
    step_key: str,
    reason: Reason,
    message: str,
    *,
    tried_again_after: float | None = None,
) -> None:
    """Report a step's failure that Dagster does not report; with the error that is being handled, if any.

    `tried_again_after`: it is tried again after so many seconds.
    """
    error = (
        serializable_error_info_from_exc_info(sys.exc_info())
        if sys.exc_info()[0]
        else SerializableErrorInfo(message, [], None)
    )
    told = UserFailureData("failed by the stack", None, {LABEL: MetadataValue.text(reason.value)})

    def report(error: SerializableErrorInfo) -> None:
        is_last = tried_again_after is None
        kind = DagsterEventType.STEP_FAILURE if is_last else DagsterEventType.STEP_UP_FOR_RETRY
        event = DagsterEvent(
            event_type_value=kind.value,
            job_name=run.job_name,
            step_key=step_key,
            message=f'Step "{step_key}" failed. {message}',
            event_specific_data=(
                StepFailureData(error, user_failure_data=told)
                if is_last
                else StepRetryData(error, tried_again_after)
            ),
        )
        instance.report_dagster_event(event, run.run_id, logging.ERROR)
        flush(instance)

    try:
        report(error)
    except Refused as refused:
        # Of the same texts, it may be.
        report(SerializableErrorInfo(str(refused), [], None))


def flush(instance: DagsterInstance) -> None:
    """Write what was reported so far."""
    ledger_of(instance).flush()
