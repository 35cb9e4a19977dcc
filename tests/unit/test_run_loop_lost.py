"""A run whose steps lose their workers, or which loses its own process: what was reported counts once."""

import signal
from typing import Any, NoReturn

import pytest
from dagster import DagsterInstance, DagsterRunStatus, OpExecutionContext, RetryRequested
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.system_config.objects import ResolvedRunConfig
from sqlalchemy.exc import ProgrammingError

from dagster_stack.errors import Fenced
from dagster_stack.messaging.messages import StepMessage, step_task_id
from dagster_stack.run import run_loop
from dagster_stack.store.leases import Work
from dagster_stack.timing import STALE_SECS
from tests.unit import eventful_jobs, step_jobs
from tests.unit.database_errors import AWAY, noted
from tests.unit.driven_runs import HOLDER, Result, Workers, announced, executed, resumed
from tests.unit.holders import Database
from tests.unit.runs_by_hand import execute, kinds, message, started_run


@pytest.fixture
def instance(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> DagsterInstance:
    monkeypatch.setattr(eventful_jobs, "happenings", {})
    monkeypatch.setattr(eventful_jobs, "yields", [])
    return instance


class Deaths:
    """Workers that die while they execute a step, when everything that it reported so far is stored."""

    def __init__(self, workers: Workers, database: Database, instance: DagsterInstance) -> None:
        self._workers, self._database, self._instance = workers, database, instance
        self._current: StepMessage | None = None
        #: The messages whose workers died, when `comes_again` is False.
        self.lost: list[StepMessage] = []
        self.comes_again = True
        workers.before = self._begin

    def _begin(self, step: StepMessage) -> None:
        self._current = step

    def __call__(self, _: OpExecutionContext) -> None:
        """The broker delivers the message again; what this process still reports, nobody hears."""
        step, storage = self._current, self._instance.event_log_storage
        assert step
        storage.flush()  # type: ignore[attr-defined]
        self._database.leases.mark_lost(step.work, HOLDER, "killed")
        if self.comes_again:
            self._workers.queue.append((5, step))
        else:
            self.lost.append(step)


@pytest.fixture
def dies(workers: Workers, database: Database, instance: DagsterInstance) -> Deaths:
    return Deaths(workers, database, instance)


# --- executions that are lost ----------------------------------------------------------------------------------------


def test_what_is_mapped_is_what_the_execution_that_succeeded_yielded(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    # Given an op that yields a and b and dies, and then finds a and c
    eventful_jobs.yields[:] = [("ab", dies), ("ac", None)]

    result = executed(instance, eventful_jobs.with_changing_keys)

    # Then exactly these two are mapped and collected, and the log has no other output; what was lost people still read
    assert result.succeeded
    assert sorted(workers.keys) == ["add_one[a]", "add_one[c]", "keys", "total"]
    assert result.value("total") == ord("a") + 1 + ord("c") + 1
    of_keys = kinds(instance, result.run_id, "keys")
    assert (of_keys.count("STEP_START"), of_keys.count("STEP_OUTPUT")) == (2, 2)
    told = [
        line.partition("Does not count, since this execution did not end: ")[2]
        for line in result.said("not end")
    ]
    assert [line for line in told if "mapping key" in line] == [
        f'Yielded output "result" mapping key "{key}" of type "Int". (Type check passed).' for key in "ab"
    ]
    assert result.ends()["keys"] == ["STEP_SUCCESS"]


def test_a_run_that_goes_on_maps_the_same(instance: DagsterInstance, workers: Workers, dies: Deaths) -> None:
    # Given an op that was lost and executed again, while the run had no process
    run = started_run(instance, eventful_jobs.with_changing_keys)
    announced(instance, run, "keys")
    eventful_jobs.yields[:] = [("ab", dies), ("ac", None)]
    step = message(instance, run, "keys")
    dies._begin(step)
    with pytest.raises(Fenced):
        execute(step, HOLDER)
    workers.queue.clear()
    execute(step, "worker@there")

    result = resumed(instance, run, eventful_jobs.with_changing_keys)

    assert result.succeeded
    assert sorted(workers.keys) == ["add_one[a]", "add_one[c]", "total"]


def test_a_step_that_was_lost_is_started_twice_and_has_succeeded_once(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    eventful_jobs.happenings["eventful"] = [dies]

    result = executed(instance, eventful_jobs.with_an_event)

    assert result.succeeded
    assert result.ends() == {"eventful": ["STEP_SUCCESS"], "add_one": ["STEP_SUCCESS"]}
    assert kinds(instance, result.run_id, "eventful").count("STEP_START") == 2
    assert workers.sent == [("eventful", 1), ("add_one", 1)]


def test_an_asset_that_a_lost_execution_made_was_made_once(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    eventful_jobs.happenings["made"] = [dies]

    result = executed(instance, eventful_jobs.with_an_asset)

    assert result.succeeded
    assert kinds(instance, result.run_id, "made").count("ASSET_MATERIALIZATION") == 1


def test_without_waiting_for_whole_steps_what_is_there_is_used_at_once_and_once(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    # Given a run whose steps need not wait for the whole step above them, of which the first one is lost after
    # one of its outputs, and delivered again when what needs that output has ended
    eventful_jobs.happenings["two_outputs"] = [dies]
    dies.comes_again = False

    def deliver_again(step: StepMessage) -> None:
        if step.step_key == "after_first":
            workers.queue += [(5, lost) for lost in dies.lost]

    workers.after = deliver_again

    result = executed(
        instance,
        eventful_jobs.with_two_outputs,
        {"step_dependency_config": {"require_upstream_step_success": False}},
    )

    # Then that did not wait for the end
    assert result.succeeded
    assert workers.sent == [("two_outputs", 1), ("after_first", 1), ("after_second", 1)]
    ended = list(result.ends())
    assert ended.index("after_first") < ended.index("two_outputs")
    assert all(ends == ["STEP_SUCCESS"] for ends in result.ends().values())


def test_steps_wait_for_whole_steps_as_dagster_has_it_by_default(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    eventful_jobs.happenings["two_outputs"] = [dies]

    result = executed(instance, eventful_jobs.with_two_outputs)

    assert result.succeeded
    assert next(iter(result.ends())) == "two_outputs"


def test_a_re_execution_maps_what_the_execution_that_succeeded_yielded(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    """Dagster takes every output in the log of the first run for one of the step's."""
    # Given a run whose op yields a and b and dies, and then finds a and c, and which fails at its end
    eventful_jobs.yields[:] = [("ab", dies), ("ac", None)]
    eventful_jobs.happenings["last"] = [fails]
    first = executed(instance, eventful_jobs.with_changing_keys_and_a_failure)
    assert first.status == DagsterRunStatus.FAILURE
    workers.sent.clear()

    # When it is executed again from its failure
    result = executed_again(instance, first, eventful_jobs.with_changing_keys_and_a_failure)

    assert result.succeeded
    assert workers.keys == ["last"]
    assert result.value("last") == [ord("a") + 1, ord("c") + 1]


def fails(_: OpExecutionContext) -> NoReturn:
    raise RuntimeError("not this time")


def executed_again(instance: DagsterInstance, first: Result, a_job: Any) -> Result:
    """A run's re-execution from failure, as Dagit makes it."""
    parent = instance.get_run_by_id(first.run_id)
    assert parent
    open_steps, known = KnownExecutionState.build_resume_retry_reexecution(instance, parent)
    plan = create_execution_plan(a_job, known_state=known).build_subset_plan(
        open_steps, a_job, ResolvedRunConfig.build(a_job)
    )
    return executed(
        instance, a_job, execution_plan=plan, parent_run_id=parent.run_id, root_run_id=parent.run_id
    )


def test_an_attempt_that_is_tried_again_maps_what_its_execution_that_succeeded_yielded(
    instance: DagsterInstance, workers: Workers, dies: Deaths
) -> None:
    """The start of a second attempt has a name of its own."""
    eventful_jobs.yields[:] = [("x", asks_for_a_retry), ("ab", dies), ("ac", None)]

    result = executed(instance, eventful_jobs.with_changing_keys)

    assert result.succeeded
    assert sorted(workers.keys) == ["add_one[a]", "add_one[c]", "keys", "keys", "total"]


def asks_for_a_retry(_: OpExecutionContext) -> NoReturn:
    raise RetryRequested(max_retries=1)


# --- limits of a run that goes on ------------------------------------------------------------------------------------------


def limited(config: dict[str, Any]) -> dict[str, Any]:
    return {"execution": {"config": config}}


def test_what_an_earlier_process_sent_has_its_place_before_anything_new(
    instance: DagsterInstance, workers: Workers
) -> None:
    # Given a run of two steps at once, which an earlier process had used for the last ones of the plan
    run = started_run(instance, eventful_jobs.six_chains, limited({"max_concurrent": 2}))
    announced(instance, run, "first_3", "first_5")
    workers.queue += [(5, message(instance, run, key)) for key in ("first_3", "first_5")]

    result = resumed(instance, run, eventful_jobs.six_chains)

    # Then these are waited for, nothing is sent twice, and never more than two are on their way
    assert result.succeeded
    assert len(workers.sent) == len(set(workers.sent)) == 10
    assert not {"first_3", "first_5"} & set(workers.keys)
    assert workers.most_at_once <= 2


def test_what_ended_before_a_run_goes_on_takes_no_place(instance: DagsterInstance, workers: Workers) -> None:
    # Given a run of one step at once, of which an earlier process has seen three steps end, and a fourth one has
    # ended since
    run = started_run(instance, eventful_jobs.six_chains, limited({"max_concurrent": 1}))
    done = ("first_4", "second_4", "first_5", "second_5")
    announced(instance, run, *done)
    for key in ("first_4", "first_5"):
        execute(message(instance, run, key))
    for key in ("second_4", "second_5"):
        execute(message(instance, run, key, outputs(key.replace("second", "first"))))

    result = resumed(instance, run, eventful_jobs.six_chains)

    assert result.succeeded
    assert len(workers.sent) == 8
    assert not set(done) & set(workers.keys)
    assert all(ends == ["STEP_SUCCESS"] for ends in result.ends().values())


def outputs(*keys: str) -> KnownExecutionState:
    return KnownExecutionState(ready_outputs={StepOutputHandle(key, "result") for key in keys})


def test_a_limit_by_tag_counts_what_an_earlier_process_sent(
    instance: DagsterInstance, workers: Workers
) -> None:
    limits = [{"key": "database", "value": "small", "limit": 1}]
    run = started_run(instance, step_jobs.with_a_limit, limited({"tag_concurrency_limits": limits}))
    announced(instance, run, "limited_2")
    workers.queue.append((5, message(instance, run, "limited_2")))
    at_once: list[int] = []
    workers.before = lambda step: at_once.append(
        sum("limited" in each.step_key for each in (step, *(each for _, each in workers.queue)))
    )

    result = resumed(instance, run, step_jobs.with_a_limit)

    assert result.succeeded
    assert sorted(workers.keys) == ["limited_0", "limited_1", "one"]
    assert max(at_once) == 1


# --- a run that loses its process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (Fenced("another process has the run"), True),
        (AWAY, True),
        (noted(ProgrammingError("SELEC", {}, Exception("syntax error"))), False),
        (RuntimeError("a mistake"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_driving_process_calls_no_step_back(
    instance: DagsterInstance, workers: Workers, error: Exception, goes_on: bool
) -> None:
    """Whether it ends the run is known when the run's end is stored; a run that goes on waits for its steps."""

    def fails(timeout: float) -> NoReturn:
        raise error

    workers.wait = fails  # type: ignore[method-assign]

    result = executed(instance, step_jobs.linear)

    assert workers.revoked == workers.killed == []
    assert run_loop.goes_on_elsewhere(error) is goes_on
    assert workers.closed
    assert result.events


def test_a_process_that_is_told_to_stop_because_it_lost_the_run_leaves_its_steps_alone(
    instance: DagsterInstance, workers: Workers, database: Database
) -> None:
    """Their end is the new process's matter; a user's cancellation comes another way."""
    storage = instance.event_log_storage
    run = started_run(instance, step_jobs.linear, status=DagsterRunStatus.STARTING)
    lease = database.taken(Work(run.run_id), "runner@a")

    def lost(timeout: float) -> bool:
        database.silence(lease.work, STALE_SECS + 1)
        database.taken(lease.work, "runner@b")
        signal.raise_signal(signal.SIGINT)
        return False

    workers.wait = lost  # type: ignore[method-assign]

    with storage.holding(lease), pytest.raises(Fenced):  # type: ignore[attr-defined]
        resumed(instance, run, step_jobs.linear, resume=False)

    assert workers.revoked == workers.killed == []
    found = instance.get_run_by_id(run.run_id)
    assert found
    assert found.status == DagsterRunStatus.STARTED
    assert [message.task_id for _, message in workers.queue] == [step_task_id(run.run_id, "one", 1)]
