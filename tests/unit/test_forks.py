"""A step whose op forks: what its children say is in the run's log, and nothing that they do counts as the step's."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from dagster import AssetMaterialization, DagsterInstance, OpExecutionContext, get_dagster_logger

from dagster_stack.forks import leave
from dagster_stack.objects.client import s3_client
from dagster_stack.store.event_log import PooledEventLogStorage
from tests.unit import eventful_jobs
from tests.unit.runs_by_hand import events, execute, kinds, message, started_run

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventful_jobs, "happenings", {})


def forked(act: Callable[[], Any]) -> int:
    """The exit code of a child that does this and leaves by os._exit, as user code does it."""
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def log_300() -> None:
    for number in range(300):
        get_dagster_logger().info(f"line {number}")


def step_of(instance: DagsterInstance, act: Callable[[OpExecutionContext], Any]) -> str:
    """A run whose first op did this; returns its id."""
    eventful_jobs.happenings["eventful"] = [act]
    run = started_run(instance, eventful_jobs.with_an_event)
    execute(message(instance, run, "eventful"))
    return run.run_id


def lines(instance: DagsterInstance, run_id: str) -> list[str]:
    """The run's log: what user code logged, and the kinds of a step's end and outputs."""
    kept = ("STEP_OUTPUT", "STEP_SUCCESS", "STEP_FAILURE", "HANDLED_OUTPUT")
    found = []
    for record in instance.get_records_for_run(run_id).records:
        entry = record.event_log_entry
        if not entry.is_dagster_event and not entry.user_message.startswith("Writing file"):
            found.append(entry.user_message)
        elif entry.is_dagster_event and entry.get_dagster_event().event_type_value in kept:
            found.append(entry.get_dagster_event().event_type_value)
    return found


GREEN = ["STEP_OUTPUT", "HANDLED_OUTPUT", "STEP_SUCCESS"]


# --- what children say -------------------------------------------------------------------------------------


def test_a_child_logs_300_lines_and_leaves_and_its_parents_step_goes_on(instance: DagsterInstance) -> None:
    # Given an op that has logged, and forks
    def op(context: OpExecutionContext) -> None:
        context.log.info("before")
        forked(log_300)
        context.log.info("after")

    # When it is executed
    run_id = step_of(instance, op)

    # Then each line is there once, in the order in which it was said, and so is what the parent did
    assert lines(instance, run_id) == ["before", *(f"line {each}" for each in range(300)), "after", *GREEN]


def test_children_that_log_at_once_lose_and_repeat_nothing(instance: DagsterInstance) -> None:
    def op(context: OpExecutionContext) -> None:
        children = []
        for number in range(8):
            child = os.fork()
            if not child:
                for line in range(40):
                    context.log.info(f"child {number} line {line}")
                os._exit(0)
            children.append(child)
        for line in range(40):
            context.log.info(f"parent line {line}")
        for child in children:
            os.waitpid(child, 0)

    found = lines(instance, step_of(instance, op))

    assert found[-3:] == GREEN
    said = {f"child {each} line {line}" for each in range(8) for line in range(40)}
    assert sorted(found[:-3]) == sorted(said | {f"parent line {line}" for line in range(40)})


def test_a_childs_child_an_asset_and_a_long_text_are_reported_too(instance: DagsterInstance) -> None:
    def op(context: OpExecutionContext) -> None:
        def child() -> None:
            forked(lambda: context.log.info("deep"))
            context.log_event(AssetMaterialization("of_a_child"))
            context.log.info("x" * 1_000_000)

        assert forked(child) == 0

    run_id = step_of(instance, op)

    deep, long, *green = lines(instance, run_id)
    assert (deep, green) == ("deep", GREEN)
    assert long.startswith("x" * 1_000)
    assert kinds(instance, run_id, "eventful").count("ASSET_MATERIALIZATION") == 1


def test_a_child_may_read_and_write_what_the_instance_keeps(instance: DagsterInstance) -> None:
    """On connections of its own: those of its parent are for its parent."""

    def op(context: OpExecutionContext) -> None:
        def child() -> None:
            context.instance.add_run_tags(context.run_id, {"of": "child"})
            assert context.instance.get_run_by_id(context.run_id)

        assert forked(child) == 0

    run_id = step_of(instance, op)

    assert lines(instance, run_id) == GREEN
    run = instance.get_run_by_id(run_id)
    assert run
    assert run.tags["of"] == "child"


def test_a_child_that_is_killed_while_it_logs_harms_nobody(instance: DagsterInstance) -> None:
    def op(context: OpExecutionContext) -> None:
        has_logged, logs = os.pipe()
        child = os.fork()
        if not child:
            while True:
                context.log.info("again")
                os.write(logs, b".")
        os.read(has_logged, 1)
        time.sleep(0.2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(has_logged)
        os.close(logs)
        context.log.info("after")

    found = lines(instance, step_of(instance, op))

    assert found[0] == "again"
    assert found[-4:] == ["after", *GREEN]


# --- children that come back ---------------------------------------------------------------------------------


def raise_error() -> None:
    raise ValueError("of a child")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: None, 0),
        (raise_error, 1),
        (lambda: sys.exit(5), 5),
        (sys.exit, 0),
        (lambda: sys.exit("a reason"), 1),
    ],
    ids=["returns", "raises", "exits", "exits_well", "exits_with_a_text"],
)
def test_a_child_that_comes_back_ends_and_reports_no_end_of_the_step(
    instance: DagsterInstance, end: Callable[[], None], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given an op whose child leaves user code as the op itself would
    codes = []
    me = os.getpid()

    def op(context: OpExecutionContext) -> None:
        child = os.fork()
        if not child:
            end()
            return
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    # When it is executed
    run_id = step_of(instance, op)

    # Then the child has ended with that, where user code ended
    assert os.getpid() == me
    assert codes == [code]
    # And the step has one end, its parent's
    assert lines(instance, run_id) == GREEN
    assert ("of a child" in capfd.readouterr().err) == (end is raise_error)


def test_an_error_of_the_parent_is_the_steps_whatever_its_child_did(instance: DagsterInstance) -> None:
    def op(context: OpExecutionContext) -> None:
        child = os.fork()
        if not child:
            return
        os.waitpid(child, 0)
        raise ValueError("of the parent")

    run_id = step_of(instance, op)

    assert lines(instance, run_id) == ["STEP_FAILURE"]
    (failed,) = (event for event in events(instance, run_id) if event.is_step_failure)
    assert failed.step_failure_data.error
    assert "of the parent" in failed.step_failure_data.error.to_string()


# --- what children leave alone -----------------------------------------------------------------------------


def backends(instance: DagsterInstance) -> set[int]:
    """The servers' processes of this process's connections."""
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    engine = storage._engine
    with engine.connect() as one, engine.connect() as other:
        ask = sqlalchemy.text("SELECT pg_backend_pid()")
        return {one.execute(ask).scalar_one(), other.execute(ask).scalar_one()}


def test_a_child_leaves_its_parents_connections_as_they_are(instance: DagsterInstance) -> None:
    """Neither its garbage collector nor its end says goodbye to the parent's servers."""
    before = backends(instance)

    def child() -> None:
        import gc

        assert not backends(instance) & before
        del instance.event_log_storage._engine  # type: ignore[attr-defined]
        gc.collect()

    assert forked(child) == 0

    assert backends(instance) == before


def test_a_child_has_an_s3_client_with_connections_of_its_own() -> None:
    client = s3_client("http://127.0.0.1:1")
    manager = client._endpoint.http_session._manager

    assert forked(lambda: os._exit(client._endpoint.http_session._manager is manager)) == 0
    assert client._endpoint.http_session._manager is manager


def test_a_signal_ends_a_child_also_in_the_middle_of_a_step(instance: DagsterInstance) -> None:
    """Dagster's handler raises an error, which user code may catch: no Pool could end its processes."""
    codes = []

    def op(context: OpExecutionContext) -> None:
        child = os.fork()
        if not child:
            while True:
                try:
                    time.sleep(60)
                except BaseException as error:
                    print("caught", error)
        os.kill(child, signal.SIGTERM)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert lines(instance, step_of(instance, op)) == GREEN
    assert codes == [-signal.SIGTERM]


def test_handlers_of_user_code_stay_in_a_child() -> None:
    def handler(*_: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert forked(lambda: os._exit(signal.getsignal(signal.SIGTERM) is not handler)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_ends_a_child_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    def child() -> None:
        try:
            raise ValueError("why")
        except ValueError:
            leave()

    assert forked(child) == 1
    assert capfd.readouterr().err.count("ValueError: why") == 1
