"""A run driven to its end: what is sent when, what the event log decides, and what happens when things go wrong.

Steps are executed in this process, by the code of a worker, while the run waits; the clock moves only by waiting.
"""

import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import celery.app.control
import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    MetadataValue,
    ReexecutionOptions,
    execute_job,
    job,
    multiprocess_executor,
    op,
    reconstructable,
)
from dagster._config import process_config
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import EngineEventData
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.init import InitExecutorContext
from dagster_celery.executor import CELERY_CONFIG

from dagster_stack import executor
from dagster_stack.broker import QueueState
from dagster_stack.delivery import ENDS
from dagster_stack.errors import BrokerUnreachable, SettingsError
from dagster_stack.executor import CONFIG_SCHEMA, POLL_SECS, READ_GAP_SECS, CeleryExecutor, celery_executor
from dagster_stack.handler import MISSING_LOOK_SECS, MISSING_LOOKS
from dagster_stack.messages import StepMessage, step_task_id
from dagster_stack.step_execution import StepExecution
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.runs_by_hand import events, execute, kinds, message, said, started_run

YAML = """
execution:
  config:
    broker: amqp://from-the-file//
    backend: rpc://
    include: [from.the.file]
    config_source: {worker_prefetch_multiplier: 3, task_acks_late: true}
"""


class Workers:
    """A run's link to the broker and the one worker behind it, which works while the run waits.

    Like RabbitMQ's queues with priorities it gives out the highest first, and among equals the first sent. A
    step is executed by the code of a real worker, in this process, and `wait` then tells of its wake-up at
    once; without one `wait` takes its whole time. A broker that is away raises BrokerUnreachable.
    """

    def __init__(self, instance: DagsterInstance, clock: Clock) -> None:
        self._instance = instance
        self._clock = clock
        #: What waits: priority, message.
        self.queue: list[tuple[int, StepMessage]] = []
        #: All that was ever sent: step, attempt.
        self.sent: list[tuple[str, int]] = []
        self.most_at_once = 0
        self.reads = 0
        self.closed = False
        #: The task ids of each call to revoke.
        self.revoked: list[list[str]] = []
        # What may be different from a good day:
        self.wakes_run = True
        self.away_until = 0.0
        #: Seconds that a step takes, by its key; none takes any otherwise.
        self.durations: dict[str, float] = {}
        #: How often a step's message is lost on its way.
        self.loses: Counter[str] = Counter()
        #: Called before and after a step is executed.
        self.before: Callable[[StepMessage], None] = lambda message: None
        self.after: Callable[[StepMessage], None] = lambda message: None

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.sent]

    def _reached(self) -> None:
        if self._clock.now < self.away_until:
            raise BrokerUnreachable("The broker does not answer: refused")

    def send(self, message: StepMessage, job: str, queue: str, priority: int) -> None:
        self._reached()
        assert message.task_id == step_task_id(message.run_id, message.step_key, message.attempt)
        self.sent.append((message.step_key, message.attempt))
        if self.loses[message.step_key]:
            self.loses[message.step_key] -= 1
            return
        self.queue.append((priority, StepMessage.from_json(message.to_json())))
        self.most_at_once = max(self.most_at_once, len(self.queue))

    def wait(self, timeout: float) -> bool:
        self._reached()
        if not self.queue:
            self._clock.sleep(timeout)
            return False
        first = max(self.queue, key=lambda entry: entry[0])
        key = first[1].step_key
        left = self.durations.get(key, 0.0)
        if left > timeout:
            self.durations[key] = left - timeout
            self._clock.sleep(timeout)
            return False
        self._clock.sleep(left)
        self.queue.remove(first)
        self.before(first[1])
        woken: list[bool] = []
        StepExecution(first[1], "worker@here", lambda: woken.append(True)).run()
        self.after(first[1])
        if not self.wakes_run:
            self._clock.sleep(timeout)
        return bool(woken) and self.wakes_run

    def queue_state(self, queue: str) -> QueueState:
        self._reached()
        return QueueState(len(self.queue), 1)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().set_for_run(monkeypatch)


@pytest.fixture
def workers(instance: DagsterInstance, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """The workers of every run of a test, and no other broker than them."""
    workers = Workers(instance, clock)
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://localhost")
    monkeypatch.setattr(executor, "BrokerLink", lambda app, run_id: workers)

    def revoke(_: Any, ids: list[str], **options: Any) -> None:
        assert options == {"terminate": True, "signal": "SIGINT"}
        workers.revoked.append(ids)

    def query_task(_: Any, *ids: str) -> dict[str, dict[str, Any]]:
        return {
            "worker@here": {each.task_id: ["active", {}] for _, each in workers.queue if each.task_id in ids}
        }

    monkeypatch.setattr(celery.app.control.Control, "revoke", revoke)
    monkeypatch.setattr(celery.app.control.Inspect, "query_task", query_task)
    read = DagsterInstance.get_records_for_run

    def counted(*arguments: Any, **named: Any) -> Any:
        # Workers, which are in this process too, ask for the ends of one step and without a limit.
        workers.reads += "limit" in named
        return read(*arguments, **named)

    monkeypatch.setattr(DagsterInstance, "get_records_for_run", counted)
    return workers


@dataclass(frozen=True)
class Result:
    """A run at its end."""

    instance: DagsterInstance
    run_id: str
    #: What the run's process told its caller.
    events: list[DagsterEvent]

    @property
    def status(self) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(self.run_id)
        assert run
        return run.status

    @property
    def succeeded(self) -> bool:
        return self.status == DagsterRunStatus.SUCCESS

    def value(self, key: str) -> Any:
        """What Dagster's default IO manager stored for a step: a pickle in the instance's folder."""
        with (Path(self.instance.storage_directory()) / self.run_id / key / "result").open("rb") as file:
            return pickle.load(file)

    def ends(self) -> dict[str, list[str]]:
        """How the attempts of each step ended, as the log has it."""
        found: dict[str, list[str]] = {}
        for event in events(self.instance, self.run_id):
            if event.event_type in ENDS:
                found.setdefault(str(event.step_key), []).append(event.event_type_value)
        return found

    def said(self, text: str) -> list[str]:
        """The lines of the run's log with this text."""
        return [line for line in said(self.instance, self.run_id) if text in line]


def executed(
    instance: DagsterInstance, a_job: Any, execution: Mapping[str, Any] | None = None, **more: Any
) -> Result:
    """A run of a job, driven to its end; `execution` is its `execution: config:`."""
    config = {"execution": {"config": execution}} if execution else {}
    run = started_run(instance, a_job, config, status=DagsterRunStatus.STARTING, **more)
    told = list(execute_run_iterator(reconstructable(a_job), run, instance))
    return Result(instance, run.run_id, told)


def resumed(instance: DagsterInstance, run: DagsterRun, a_job: Any) -> Result:
    """A run, driven from where it stopped to its end as a new process does."""
    told = list(execute_run_iterator(reconstructable(a_job), run, instance, resume_from_failure=True))
    return Result(instance, run.run_id, told)


# --- plans of every shape -----------------------------------------------------------------------------------------


def test_a_chain_is_sent_step_by_step_and_its_run_succeeds(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.linear)
    assert result.succeeded
    assert result.value("third") == 3

    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert workers.most_at_once == 1
    assert workers.closed
    assert workers.revoked == []


def test_the_caller_of_a_run_sees_what_decided_it_in_the_order_of_the_log(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.linear)
    seen = [event.event_type_value for event in result.events if event.step_key and event.is_step_event]

    stored = [kind for kind in kinds(instance, result.run_id) if kind in set(seen)]
    assert seen == stored
    assert seen.count("STEP_SUCCESS") == seen.count("STEP_START") == 3


def test_steps_that_need_nothing_are_sent_together(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.wide)
    assert result.succeeded

    assert len(workers.sent) == len(set(workers.sent)) == 12
    assert workers.most_at_once == 12


def test_every_step_is_announced_before_any_of_its_group_is_sent(
    instance: DagsterInstance, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[int] = []
    send = workers.send

    def counted(message: StepMessage, *where: Any) -> None:
        announced.append(kinds(instance, message.run_id).count("STEP_WORKER_STARTING"))
        send(message, *where)

    monkeypatch.setattr(workers, "send", counted)
    monkeypatch.setattr(executor, "LAUNCH_SIZE", 8)

    executed(instance, step_jobs.wide)

    assert announced == [8] * 8 + [12] * 4


def test_a_failure_ends_what_depends_on_it_and_nothing_else(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.with_a_failure)
    assert not result.succeeded

    assert sorted(workers.keys) == ["beside", "fail", "one"]
    assert result.ends() == {
        "fail": ["STEP_FAILURE"],
        "one": ["STEP_SUCCESS"],
        "beside": ["STEP_SUCCESS"],
    }
    assert result.said("Steps failed: ['fail'].")
    assert workers.revoked == []


def test_a_step_that_gets_nothing_is_skipped_with_all_behind_it(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.branching)
    assert result.succeeded

    assert sorted(workers.keys) == ["either", "on_the_left"]
    assert result.ends() == {
        "either": ["STEP_SUCCESS"],
        "on_the_left": ["STEP_SUCCESS"],
        "on_the_right": ["STEP_SKIPPED"],
        "further_right": ["STEP_SKIPPED"],
    }


def test_a_dynamic_output_becomes_steps_that_are_collected(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.dynamic)
    assert result.succeeded
    assert result.value("after_total") == 10

    assert len(workers.sent) == 1 + 3 + 3 + 1 + 1


def test_a_dynamic_output_can_be_collected_at_once(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.dynamic_collected_at_once)
    assert result.succeeded
    assert result.value("total") == 3


def test_a_dynamic_output_of_nothing_is_collected_as_an_empty_list(
    instance: DagsterInstance, workers: Workers
) -> None:
    """As with every executor of Dagster: a listing of no files is no failure."""
    result = executed(instance, step_jobs.dynamic_without_any)
    assert result.succeeded
    assert result.value("after_total") == 1


@pytest.mark.parametrize(
    ("a_job", "last", "value"), [(step_jobs.nested, "last", 4), (step_jobs.fan_in, "total", 3)]
)
def test_nested_graphs_and_fan_ins_get_their_inputs(
    instance: DagsterInstance, workers: Workers, a_job: Any, last: str, value: int
) -> None:
    result = executed(instance, a_job)
    assert result.succeeded
    assert result.value(last) == value


def test_a_selection_of_ops_is_all_that_runs(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(
        instance, step_jobs.linear, op_selection=["one", "second"], resolved_op_selection={"one", "second"}
    )
    assert result.succeeded

    assert workers.keys == ["one", "second"]


def test_a_run_again_from_failure_loads_what_its_parent_made(
    instance: DagsterInstance, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run of which one step failed, and data that was repaired since
    monkeypatch.setenv("DATA_IS_BROKEN", "1")
    failed = executed(instance, step_jobs.repairable)
    assert failed.ends()["flaky"] == ["STEP_FAILURE"]
    monkeypatch.delenv("DATA_IS_BROKEN")
    workers.sent.clear()

    # When it is run again from there
    options = ReexecutionOptions.from_failure(failed.run_id, instance)
    again = execute_job(reconstructable(step_jobs.repairable), instance=instance, reexecution_options=options)
    with again as result:
        assert result.success
        assert result.output_for_node("last") == 3

    # Then what had succeeded is not executed again
    assert workers.keys == ["flaky", "last"]


# --- attempts ------------------------------------------------------------------------------------------------------


def test_a_step_is_tried_again_as_often_as_its_policy_says(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.retrying)
    assert result.succeeded
    assert result.value("add_one") == 3

    assert workers.sent == [("stubborn", 1), ("stubborn", 2), ("stubborn", 3), ("add_one", 1)]


def test_with_retries_disabled_the_first_failure_counts(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.retrying, {"retries": {"disabled": {}}})
    assert not result.succeeded

    assert workers.sent == [("stubborn", 1)]
    assert result.ends() == {"stubborn": ["STEP_FAILURE"]}


def test_a_step_that_asks_for_a_pause_is_sent_again_after_it(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    started: list[float] = []
    workers.before = lambda _: started.append(clock.now)

    result = executed(instance, step_jobs.retrying_later)
    assert result.succeeded

    first, second = started
    assert 60 <= second - first <= 60 + 2


@pytest.mark.parametrize("wakes_run", [True, False])
def test_a_step_whose_resource_does_not_start_fails_once_and_nothing_else_does(
    instance: DagsterInstance, workers: Workers, clock: Clock, wakes_run: bool
) -> None:
    workers.wakes_run = wakes_run
    begin = clock.now

    result = executed(instance, step_jobs.with_a_broken_resource)
    assert not result.succeeded

    assert sorted(workers.keys) == ["beside", "needs_resource", "one"]
    assert result.ends() == {
        "needs_resource": ["STEP_FAILURE"],
        "one": ["STEP_SUCCESS"],
        "beside": ["STEP_SUCCESS"],
    }
    (failure,) = (event for event in events(instance, result.run_id) if event.is_step_failure)
    assert "this resource does not start" in str(failure.step_failure_data.error)
    # And nobody waited for it
    assert clock.now - begin < (POLL_SECS if wakes_run else 5 * POLL_SECS)


def test_a_step_whose_resource_does_not_start_is_tried_again_by_its_policy(
    instance: DagsterInstance, workers: Workers
) -> None:
    """As in Dagster's multiprocess executor: a database that is away for a moment is the usual reason."""
    result = executed(instance, step_jobs.with_a_broken_resource_tried_again)
    assert not result.succeeded

    assert workers.sent == [("needs_resource_twice", 1), ("needs_resource_twice", 2)]
    assert result.ends() == {"needs_resource_twice": ["STEP_UP_FOR_RETRY", "STEP_FAILURE"]}


# --- limits and order ------------------------------------------------------------------------------------------------


def test_steps_are_sent_in_the_order_of_their_priority(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.prioritized)
    assert result.succeeded

    assert workers.keys == ["heavy", "one", "unimportant"]


def test_a_run_has_so_many_steps_at_once_at_most(instance: DagsterInstance, workers: Workers) -> None:
    result = executed(instance, step_jobs.wide, {"max_concurrent": 4})
    assert result.succeeded

    assert workers.most_at_once == 4
    assert len(workers.sent) == 12


def test_steps_with_a_tag_are_limited_and_others_are_not(instance: DagsterInstance, workers: Workers) -> None:
    at_once: list[int] = []
    workers.before = lambda _: at_once.append(sum("limited" in step.step_key for _, step in workers.queue))
    limits = [{"key": "database", "value": "small", "limit": 1}]

    result = executed(instance, step_jobs.with_a_limit, {"tag_concurrency_limits": limits})
    assert result.succeeded

    assert workers.most_at_once == 2
    assert max(at_once) <= 1
    assert len(workers.sent) == 4


def test_a_pool_with_one_slot_has_one_step_at_once(instance: DagsterInstance, workers: Workers) -> None:
    instance.event_log_storage.set_concurrency_slots("database", 1)
    try:
        result = executed(instance, step_jobs.with_a_pool)
        assert result.succeeded
    finally:
        instance.event_log_storage.delete_concurrency_limit("database")

    assert workers.most_at_once == 1
    assert len(workers.sent) == 3


def test_a_priority_that_celery_does_not_know_is_told_in_the_run_log(
    instance: DagsterInstance, workers: Workers
) -> None:
    result = executed(instance, step_jobs.with_foreign_priority)
    assert result.succeeded

    (warning,) = (
        line for line in said(instance, result.run_id) if "dagster/priority, which has no effect" in line
    )
    assert "set dagster-celery/priority too: foreign" in warning
    assert "both_priorities" not in warning


# --- messages and events that are lost, late or doubled ----------------------------------------------------------


def stored_again(instance: DagsterInstance, run_id: str, step_key: str) -> None:
    """Copy all rows of a step to the end of the log, as a second execution of the same attempt reports them."""
    for entry in instance.all_logs(run_id):
        if entry.dagster_event and entry.dagster_event.step_key == step_key:
            instance.event_log_storage.store_event(entry)


@pytest.mark.parametrize(
    ("a_job", "last", "value"),
    [
        (step_jobs.linear, "third", 3),
        (step_jobs.dynamic, "after_total", 10),
        (step_jobs.retrying, "add_one", 3),
    ],
    ids=["chain", "dynamic", "retries"],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "when the next step runs"])
def test_events_that_come_twice_count_once(  # noqa: PLR0917
    instance: DagsterInstance, workers: Workers, a_job: Any, last: str, value: int, late: bool
) -> None:
    """A message that was delivered twice at the same moment: both workers execute the step and report it."""
    # Given a second worker that executes every first attempt too, and reports sooner or later
    due: list[StepMessage] = []

    def again(message: StepMessage) -> None:
        due.append(message)
        while len(due) > late:
            each = due.pop(0)
            if each.attempt == 1:
                stored_again(instance, each.run_id, each.step_key)

    workers.after = again

    result = executed(instance, a_job)
    assert result.succeeded
    assert result.value(last) == value

    # Then each attempt was sent once and nothing was counted twice
    assert len(workers.sent) == len(set(workers.sent))


def test_without_wake_ups_a_run_looks_by_itself(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    workers.wakes_run = False
    begin = clock.now

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    assert clock.now - begin <= 3 * (POLL_SECS + 1)


def test_a_step_whose_message_is_lost_is_sent_again(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    workers.loses["second"] = 1
    begin = clock.now

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    assert workers.sent == [("one", 1), ("second", 1), ("second", 1), ("third", 1)]
    assert clock.now - begin <= (MISSING_LOOKS + 1) * MISSING_LOOK_SECS


@contextmanager
def hidden(monkeypatch: pytest.MonkeyPatch, is_hidden: Callable[[DagsterEvent], bool]) -> Iterator[None]:
    """Rows whose numbers were taken and whose writers have not committed: a query does not return them."""
    read = DagsterInstance.get_records_for_run

    def visible(*arguments: Any, **named: Any) -> Any:
        page = read(*arguments, **named)
        records = [
            record
            for record in page.records
            if not (record.event_log_entry.dagster_event and is_hidden(record.event_log_entry.dagster_event))
        ]
        return page._replace(records=records)

    with monkeypatch.context() as patch:
        patch.setattr(DagsterInstance, "get_records_for_run", visible)
        yield


def test_an_end_that_becomes_visible_late_goes_on_soon_while_other_steps_end(
    instance: DagsterInstance, workers: Workers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers that report at the same time the later row can be visible first: on a busy run often."""
    # Given an end that is not visible to the first look after it, in a run whose other steps end all the time
    sent_at: dict[str, float] = {}
    ended_at: dict[str, float] = {}
    workers.durations = {f"step_{number}": 2.0 for number in range(15)}
    workers.before = lambda step: sent_at.setdefault(step.step_key, clock.now)  # type: ignore[assignment]
    workers.after = lambda step: ended_at.setdefault(step.step_key, clock.now)  # type: ignore[assignment]

    def uncommitted(event: DagsterEvent) -> bool:
        seen_late = event.step_key == "first" and event.is_step_success
        return seen_late and clock.now < ended_at.get("step_0", clock.now + 1) + 0.1

    # When all is executed
    with hidden(monkeypatch, uncommitted):
        result = executed(instance, step_jobs.two_chains)

    assert result.succeeded
    # Then what depends on it has not waited for the others
    assert sent_at["after_first"] - ended_at["first"] <= 2 * POLL_SECS


# --- a broker that is away ----------------------------------------------------------------------------------------------


def test_a_run_waits_for_a_broker_that_is_away_and_says_so(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    # Given a broker that is away when the run starts, for ten minutes
    workers.away_until = clock.now + 600

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    # Then its steps were sent once, when it was back, and its log says what it waited for
    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert 600 <= clock.now - 1000 <= 610
    told = said(instance, result.run_id)
    assert (
        len([line for line in told if line.startswith("Waiting for the broker: 1 steps are to be sent.")])
        == 1
    )
    assert told.count("The broker is back: all steps that were ready are sent.") == 1


def test_what_ends_while_the_broker_is_away_is_seen(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    """Workers need the broker to get a step, and not to end one."""

    def goes_away(step: StepMessage) -> None:
        if step.step_key == "one":
            workers.away_until = clock.now + 60

    workers.after = goes_away

    result = executed(instance, step_jobs.linear)
    assert result.succeeded

    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]
    assert "Waiting for the broker" in "".join(said(instance, result.run_id))


# --- what a run costs while nothing happens --------------------------------------------------------------------------


def test_a_run_that_waits_for_one_long_step_asks_the_database_every_few_seconds(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    workers.durations["one"] = 600
    begin = clock.now

    result = executed(instance, step_jobs.alone)
    assert result.succeeded

    assert 600 <= clock.now - begin <= 610
    assert workers.reads <= 600 / POLL_SECS + 5


def test_many_ends_at_once_are_read_at_once(
    instance: DagsterInstance, workers: Workers, clock: Clock
) -> None:
    """Thousands of wake-ups in a second don't become thousands of queries."""
    begin = clock.now
    result = executed(instance, step_jobs.wide)
    assert result.succeeded

    assert workers.reads <= (clock.now - begin) / READ_GAP_SECS + 3


# --- stopping -----------------------------------------------------------------------------------------------------------


def interrupt(workers: Workers) -> None:
    """Somebody stops the run's process while its first step runs."""

    def stop(timeout: float) -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    workers.wait = stop  # type: ignore[method-assign]


def test_a_run_that_is_told_to_stop_calls_its_steps_back(instance: DagsterInstance, workers: Workers) -> None:
    interrupt(workers)

    result = executed(instance, step_jobs.wide)
    assert not result.succeeded

    (revoked,) = workers.revoked
    assert sorted(revoked) == sorted(step_task_id(result.run_id, f"step_{n:02d}", 1) for n in range(12))
    assert "Told to stop: 12 steps are called back from queues and workers." in said(instance, result.run_id)
    assert workers.closed


def test_an_interrupted_run_tells_its_caller(instance: DagsterInstance, workers: Workers) -> None:
    interrupt(workers)

    with (
        pytest.raises(DagsterExecutionInterruptedError),
        execute_job(reconstructable(step_jobs.linear), instance=instance, raise_on_error=True),
    ):
        pass


def test_a_canceled_run_ends_as_canceled(instance: DagsterInstance, workers: Workers) -> None:
    def cancel(timeout: float) -> bool:
        (_, step), *_ = workers.queue
        run = instance.get_run_by_id(step.run_id)
        assert run
        instance.report_run_canceling(run)
        signal.raise_signal(signal.SIGINT)
        return False

    workers.wait = cancel  # type: ignore[method-assign]

    result = executed(instance, step_jobs.linear)

    assert result.status == DagsterRunStatus.CANCELED
    assert workers.revoked == [[step_task_id(result.run_id, "one", 1)]]


def test_steps_of_a_run_that_will_be_resumed_go_on(
    instance: DagsterInstance, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DagsterInstance, "run_will_resume", lambda *_: True)
    interrupt(workers)

    result = executed(instance, step_jobs.linear)

    assert workers.revoked == []
    assert "This run's process was told to stop; the run will be resumed." in said(instance, result.run_id)


def test_an_error_in_the_run_itself_calls_its_steps_back(instance: DagsterInstance, workers: Workers) -> None:
    """Its steps must not go on without it: nobody would see how they end."""

    def broken(timeout: float) -> bool:
        raise RuntimeError("a mistake")

    workers.wait = broken  # type: ignore[method-assign]

    result = executed(instance, step_jobs.linear)
    assert not result.succeeded

    assert workers.revoked == [[step_task_id(result.run_id, "one", 1)]]
    assert workers.closed
    assert result.said("An exception was thrown during execution.")


# --- going on where an earlier process stopped -------------------------------------------------------------------------


def announced(instance: DagsterInstance, run: DagsterRun, *keys: str, attempt: int = 1) -> None:
    """What an earlier process of the run wrote before it sent these steps."""
    for key in keys:
        event = DagsterEvent(
            DagsterEventType.STEP_WORKER_STARTING.value,
            run.job_name,
            step_key=key,
            event_specific_data=EngineEventData(
                {
                    "queue": MetadataValue.text("dagster"),
                    "priority": MetadataValue.int(5),
                    "attempt": MetadataValue.int(attempt),
                    "task": MetadataValue.text(step_task_id(run.run_id, key, attempt)),
                }
            ),
        )
        instance.report_dagster_event(event, run.run_id)


def test_a_resumed_run_sends_what_is_open_and_nothing_twice(
    instance: DagsterInstance, workers: Workers
) -> None:
    # Given a run of which the first step has ended, and the second one is with a worker
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one", "second")
    execute(message(instance, run, "one"))
    workers.queue.append((5, message(instance, run, "second")))

    # When another process goes on with it
    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS

    # Then it waits for the second step and sends the third
    assert workers.sent == [("third", 1)]
    assert result.ends() == {key: ["STEP_SUCCESS"] for key in ("one", "second", "third")}


def test_a_resumed_run_sends_what_the_earlier_process_had_no_time_to_send(
    instance: DagsterInstance, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one")
    execute(message(instance, run, "one"))

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == [("second", 1), ("third", 1)]


def test_a_resumed_run_of_which_nothing_was_sent_starts_from_the_beginning(
    instance: DagsterInstance, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.dynamic)

    result = resumed(instance, run, step_jobs.dynamic)

    assert result.status == DagsterRunStatus.SUCCESS

    assert len(workers.sent) == len(set(workers.sent)) == 9


def test_a_resumed_run_of_which_all_had_ended_ends(instance: DagsterInstance, workers: Workers) -> None:
    run = started_run(instance, step_jobs.alone)
    announced(instance, run, "one")
    execute(message(instance, run, "one"))

    result = resumed(instance, run, step_jobs.alone)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == []


def test_a_resumed_run_goes_on_inside_a_dynamic_part(instance: DagsterInstance, workers: Workers) -> None:
    # Given a run that stopped when its mapped steps were sent, of which one has ended
    run = started_run(instance, step_jobs.dynamic)
    announced(instance, run, "numbers", *(f"add_one[n{number}]" for number in range(3)))
    execute(message(instance, run, "numbers"))
    execute(message(instance, run, "add_one[n0]"))
    workers.queue += [(5, message(instance, run, f"add_one[n{number}]")) for number in (1, 2)]

    result = resumed(instance, run, step_jobs.dynamic)

    assert result.status == DagsterRunStatus.SUCCESS

    assert sorted(workers.keys) == ["after_total", "total", "twice[n0]", "twice[n1]", "twice[n2]"]


def test_a_resumed_run_sends_the_next_attempt_of_a_step_that_is_to_be_tried_again(
    instance: DagsterInstance, workers: Workers
) -> None:
    # Given a run whose process ended after the first attempt and before the second was announced
    run = started_run(instance, step_jobs.retrying)
    announced(instance, run, "stubborn")
    execute(message(instance, run, "stubborn"))

    result = resumed(instance, run, step_jobs.retrying)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == [("stubborn", 2), ("stubborn", 3), ("add_one", 1)]


def test_a_resumed_run_knows_how_a_later_attempt_ended(instance: DagsterInstance, workers: Workers) -> None:
    # Given a step that asked for a pause, and whose second attempt has ended when the run goes on
    run = started_run(instance, step_jobs.retrying_later)
    announced(instance, run, "later")
    execute(message(instance, run, "later"))
    announced(instance, run, "later", attempt=2)
    execute(message(instance, run, "later", KnownExecutionState(previous_retry_attempts={"later": 1})))

    result = resumed(instance, run, step_jobs.retrying_later)

    assert result.status == DagsterRunStatus.SUCCESS
    assert workers.sent == []


def test_a_resumed_run_sends_a_step_again_that_was_announced_and_lost(
    instance: DagsterInstance, workers: Workers
) -> None:
    """The earlier process announced it, and died before it sent it: nobody has it."""
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one")

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.SUCCESS

    assert workers.sent == [("one", 1), ("second", 1), ("third", 1)]


def test_a_resumed_run_that_is_stopped_calls_back_what_was_sent_before(
    instance: DagsterInstance, workers: Workers
) -> None:
    run = started_run(instance, step_jobs.linear)
    announced(instance, run, "one")
    interrupt(workers)

    result = resumed(instance, run, step_jobs.linear)

    assert result.status == DagsterRunStatus.FAILURE

    assert workers.revoked == [[step_task_id(run.run_id, "one", 1)]]


def test_a_resumed_run_tells_of_a_skipped_step_once(instance: DagsterInstance, workers: Workers) -> None:
    # Given a run that stopped after it had skipped a branch
    run = started_run(instance, step_jobs.branching)
    announced(instance, run, "either", "on_the_left")
    execute(message(instance, run, "either"))
    for key in ("on_the_right", "further_right"):
        skipped = DagsterEvent(DagsterEventType.STEP_SKIPPED.value, run.job_name, step_key=key)
        instance.report_dagster_event(skipped, run.run_id)
    workers.queue.append((5, message(instance, run, "on_the_left")))

    result = resumed(instance, run, step_jobs.branching)

    assert result.status == DagsterRunStatus.SUCCESS

    assert set(result.ends()) == {"either", "on_the_left", "on_the_right", "further_right"}
    assert workers.sent == []


# --- its settings ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def celery_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "celery.yaml"
    file.write_text(YAML)
    monkeypatch.setenv("DAGSTER_STACK_CELERY_YAML", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", "dagster")
    # A job's broker is put where Celery looks first: the test must take it away again.
    monkeypatch.setenv("CELERY_BROKER_URL", "")
    monkeypatch.delenv("CELERY_BROKER_URL")
    return file


def made(config: Mapping[str, Any]) -> CeleryExecutor:
    """The executor for a job's `execution: config:`, validated and made as Dagster does it."""

    @op
    def nothing() -> None: ...

    @job(executor_def=celery_executor)
    def a_job() -> None:
        nothing()

    result = process_config(celery_executor.config_schema.config_type, config)
    assert result.success, result.errors
    with DagsterInstance.ephemeral() as instance:
        context = InitExecutorContext(
            job=InMemoryJob(a_job),
            executor_def=celery_executor,
            executor_config=result.value or {},
            instance=instance,
        )
        create = celery_executor.executor_creation_fn
        assert create
        made = create(context)
    assert isinstance(made, CeleryExecutor)
    return made


def broker_of(made: CeleryExecutor) -> str:
    """The host that its connections go to: Celery prefers the environment's to any other."""
    return str(made._app.connection_for_write().hostname)


def test_the_executor_has_the_stock_ones_name() -> None:
    """Dagit shows it, and a job moves over by changing an import."""
    assert celery_executor.name == "celery"


def test_a_job_may_say_whatever_the_stock_and_the_multiprocess_executor_let_it_say() -> None:
    assert set(CELERY_CONFIG) <= set(CONFIG_SCHEMA)
    multiprocess = set(cast(Any, multiprocess_executor.config_schema.config_type).fields)
    # How processes are started on one machine is nothing that can be said here.
    assert multiprocess - {"start_method"} <= set(CONFIG_SCHEMA)


def test_in_embedded_mode_steps_go_through_a_folder_and_need_no_server(
    celery_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery_yaml.write_text("")
    monkeypatch.delenv("DAGSTER_STACK_S3_BUCKET")

    app = made({})._app

    assert app.connection_for_write().transport.driver_type == "filesystem"
    assert app.conf.broker_transport_options["data_folder_out"] == str(
        tmp_path / "home" / "broker" / "messages"
    )
    app.close()


@pytest.mark.usefixtures("celery_yaml")
def test_in_the_stack_steps_are_celery_tasks_on_the_broker() -> None:
    assert made({})._app.connection_for_write().transport_cls == "amqp"


@pytest.mark.usefixtures("celery_yaml")
def test_a_job_without_config_gets_everything_from_celery_yaml() -> None:
    executor = made({})

    assert broker_of(executor) == "from-the-file"
    conf = executor._app.conf
    assert conf.result_backend == "rpc://"
    assert conf.include == ["from.the.file"]
    assert conf.worker_prefetch_multiplier == 3
    assert conf.task_acks_late is True
    assert executor.retries == RetryMode.ENABLED


def test_a_jobs_own_config_wins_field_by_field(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a broker in file and environment, of which Celery would prefer the environment's
    assert celery_yaml.exists()
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://from-the-environment//")

    # When a job names its own fields
    executor = made(
        {
            "broker": "amqp://from-the-job//",
            "backend": "redis://from-the-job",
            "include": ["from.the.job"],
            "config_source": {"worker_prefetch_multiplier": 4},
            "retries": {"disabled": {}},
            "max_concurrent": 7,
            "tag_concurrency_limits": [{"key": "a", "limit": 2}],
        }
    )

    # Then these hold, also against what Celery itself reads, and the rest is the file's
    assert broker_of(executor) == "from-the-job"
    assert os.environ["CELERY_BROKER_URL"] == "amqp://from-the-job//"
    conf = executor._app.conf
    assert conf.result_backend == "redis://from-the-job"
    assert conf.include == ["from.the.job"]
    assert conf.worker_prefetch_multiplier == 4
    assert conf.task_acks_late is True
    assert executor.retries == RetryMode.DISABLED
    assert executor._max_concurrent == 7
    assert executor._tag_concurrency_limits == [{"key": "a", "limit": 2}]


def test_a_field_may_stand_in_the_environment(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert celery_yaml.exists()
    monkeypatch.setenv("CELERY_BROKER_URL", "x")
    monkeypatch.setenv("MY_BROKER", "amqp://mine//")

    assert broker_of(made({"broker": {"env": "MY_BROKER"}})) == "mine"


def test_without_any_broker_the_three_places_for_one_are_named(celery_yaml: Path) -> None:
    celery_yaml.write_text("execution: {config: {backend: 'rpc://'}}")

    with pytest.raises(
        SettingsError, match=r"No broker: set CELERY_BROKER_URL .* celery.yaml, or `execution: config"
    ):
        made({})


def test_a_broker_in_the_environment_is_enough(celery_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    celery_yaml.write_text("")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://from-the-environment//")

    assert broker_of(made({})) == "from-the-environment"

    assert os.environ["CELERY_BROKER_URL"] == "amqp://from-the-environment//"


def test_a_bad_celery_yaml_fails_the_run_with_its_reason(celery_yaml: Path) -> None:
    celery_yaml.write_text("execution: {config: {brokr: x}}")

    with pytest.raises(SettingsError, match="brokr"):
        made({})
