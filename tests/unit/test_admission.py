"""A step message that arrived: is its step to be executed, or has the event log its end already?"""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.execution.plan.objects import StepFailureData, StepSuccessData
from dagster._core.test_utils import create_run_for_test

from dagster_stack.step import admission
from dagster_stack.store.event_log import ENDS, AttemptState
from dagster_stack.store.ledger import ledger_of
from tests.unit.holders import entry

SUCCESS, FAILURE = DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE
SKIPPED, RETRY = DagsterEventType.STEP_SKIPPED, DagsterEventType.STEP_UP_FOR_RETRY
ENDED_RUNS = [
    DagsterRunStatus.SUCCESS,
    DagsterRunStatus.FAILURE,
    DagsterRunStatus.CANCELED,
    DagsterRunStatus.CANCELING,
]


@pytest.fixture
def instance(either_instance: DagsterInstance) -> DagsterInstance:
    return either_instance


def objection(
    attempt: int, *ends: DagsterEventType, run: DagsterRunStatus = DagsterRunStatus.STARTED
) -> str | None:
    found: Any = SimpleNamespace(status=run)
    return admission.objection(AttemptState(found, None, Counter(ends)), attempt)


@pytest.mark.parametrize(
    ("attempt", "ends"),
    [(1, []), (2, [RETRY]), (3, [RETRY, RETRY])],
)
def test_an_attempt_is_executed_when_the_ones_before_it_have_ended(
    attempt: int, ends: list[DagsterEventType]
) -> None:
    assert objection(attempt, *ends) is None


@pytest.mark.parametrize(
    ("attempt", "ends"),
    [
        (1, [SUCCESS]),
        (1, [FAILURE]),
        (1, [SKIPPED]),
        (1, [RETRY]),
        (2, [RETRY, SUCCESS]),
        (2, [RETRY, FAILURE]),
        (2, [RETRY, RETRY]),
        (1, [RETRY, SUCCESS]),
        (1, [SUCCESS, SUCCESS]),
        (3, [SUCCESS]),
    ],
)
def test_an_attempt_whose_end_is_in_the_log_is_not_executed_again(
    attempt: int, ends: list[DagsterEventType]
) -> None:
    assert objection(attempt, *ends) == "the event log has its end already: the message came twice"


@pytest.mark.parametrize("status", ENDED_RUNS)
def test_nothing_is_executed_for_a_run_that_has_ended(status: DagsterRunStatus) -> None:
    assert objection(1, run=status) == f"its run is {status.value}"


@pytest.mark.parametrize("status", sorted(set(DagsterRunStatus) - set(ENDED_RUNS), key=str))
def test_in_every_other_state_a_run_executes_its_steps(status: DagsterRunStatus) -> None:
    """A run that is resumed by a new process may still be STARTING while its steps go on."""
    assert objection(1, run=status) is None


# --- as a storage without the stack's own query knows it ------------------------------------------------------------


def test_the_ends_of_this_step_in_this_run_are_counted(instance: DagsterInstance) -> None:
    # Given a run with the ends of two steps and other events, beside another run with the same steps
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    other = create_run_for_test(instance)
    for run_id, step, kind in (
        (run.run_id, "step", DagsterEventType.STEP_START),
        (run.run_id, "step", RETRY),
        (run.run_id, "step", RETRY),
        (run.run_id, "step", SUCCESS),
        (run.run_id, "beside", FAILURE),
        (other.run_id, "step", FAILURE),
    ):
        store(instance, run_id, step, kind)

    ledger = ledger_of(instance)
    found = ledger.attempt_state(run.run_id, "step")
    assert found.run
    assert found.run.status == DagsterRunStatus.STARTED
    assert found.ends == Counter({RETRY: 2, SUCCESS: 1})
    assert ledger.attempt_state(run.run_id, "beside").ends == Counter({FAILURE: 1})
    assert ledger.attempt_state(run.run_id, "never started").ends == Counter()


def test_of_an_unknown_run_nothing_is_known(instance: DagsterInstance) -> None:
    found = ledger_of(instance).attempt_state("00000000-0000-0000-0000-000000000000", "step")

    assert found == AttemptState(None, None, Counter())


def test_every_event_that_ends_an_attempt_is_looked_for() -> None:
    assert {SUCCESS, FAILURE, SKIPPED, RETRY} == ENDS


def store(instance: DagsterInstance, run_id: str, step: str, kind: DagsterEventType) -> None:
    data: dict[DagsterEventType, Any] = {SUCCESS: StepSuccessData(1.0), FAILURE: StepFailureData(None, None)}
    instance.event_log_storage.store_event(entry(run_id, kind, step, data.get(kind)))
