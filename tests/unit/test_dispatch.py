"""Steps on their way: announced before they are sent, kept while the broker is away, looked after until they end."""

from contextlib import ExitStack
from typing import Any

import pytest
from dagster import DagsterInstance

from dagster_stack.messaging.messages import StepMessage
from dagster_stack.run.dispatch import (
    QUEUE_LOOK_SECS,
)
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.dispatched_steps import CONTROL_ERRORS, Broker, Driven
from tests.unit.runs_by_hand import events

# --- sending ------------------------------------------------------------------------------------------------------


@pytest.fixture
def instance(either_instance: DagsterInstance) -> DagsterInstance:
    return either_instance


def test_a_step_is_announced_before_it_is_sent(driven: Driven, broker: Broker) -> None:
    """A process that dies in between leaves a trace of what it was about to do."""
    driven.launch("one")

    (announced,) = (
        event
        for event in events(driven.instance, driven.run.run_id)
        if event.event_type_value == "STEP_WORKER_STARTING"
    )
    assert (announced.step_key, announced.message) == ("one", 'Sending step "one" to queue "dagster".')
    assert broker.sent == []

    driven.dispatch.send(driven.context)
    assert broker.keys == ["one"]


def test_an_announcement_names_queue_priority_attempt_and_task(driven: Driven) -> None:
    driven.launch("heavy", attempts=2)

    (announced,) = (
        event
        for event in events(driven.instance, driven.run.run_id)
        if event.event_type_value == "STEP_WORKER_STARTING"
    )
    metadata = {name: value.value for name, value in announced.engine_event_data.metadata.items()}
    assert metadata == {"queue": "heavy", "priority": 10, "attempt": 2, "task": driven.task("heavy", 2)}


def test_each_step_goes_to_its_queue_with_its_priority(driven: Driven, broker: Broker) -> None:
    """The run of this job adds 1 to the priority of each step."""
    driven.send("unimportant", "one", "heavy")

    assert broker.sent == [("unimportant", "dagster", 2), ("one", "dagster", 6), ("heavy", "heavy", 10)]


def test_a_step_is_sent_once(driven: Driven, broker: Broker) -> None:
    driven.send("one")
    driven.dispatch.send(driven.context)

    assert broker.keys == ["one"]


def test_while_the_broker_is_away_steps_wait_and_the_run_log_says_so_once(
    driven: Driven, broker: Broker
) -> None:
    # Given a broker that is away when the first step is ready, and still when the next one is
    broker.away = True
    driven.send("one")
    driven.send("unimportant")
    driven.dispatch.send(driven.context)
    waiting = [line for line in driven.reported if line.startswith("Waiting for the broker")]
    assert waiting == ["Waiting for the broker: 1 steps are to be sent. The broker does not answer: refused"]

    # When it is back
    broker.away = False
    driven.dispatch.send(driven.context)

    # Then all are sent in their order, and that is said once too
    assert broker.keys == ["one", "unimportant"]
    driven.dispatch.send(driven.context)
    assert driven.reported.count("The broker is back: all steps that were ready are sent.") == 1


def test_a_broker_that_goes_in_the_middle_gets_no_step_twice(
    driven: Driven, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a broker that goes after the first of three steps
    send = broker.send

    def send_one(message: StepMessage, *where: Any) -> None:
        send(message, *where)
        broker.away = True

    monkeypatch.setattr(broker, "send", send_one)
    driven.send("unimportant", "one", "heavy")
    assert broker.keys == ["unimportant"]

    # When it is back for good
    monkeypatch.setattr(broker, "send", send)
    broker.away = False
    driven.dispatch.send(driven.context)

    assert broker.keys == ["unimportant", "one", "heavy"]


# --- queues without a worker -------------------------------------------------------------------------------------


def test_a_queue_that_nobody_consumes_is_told_once_with_the_command_that_helps(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given steps in a queue for which nobody started a worker, and others that have one
    broker.consumers["dagster"] = 1
    driven.send("heavy", "one")

    # When some seconds pass
    for _ in range(5):
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()

    # Then the run's log says what is missing, once
    told = [line for line in driven.reported if "no worker consumes" in line]
    assert told == [
        'Steps wait in queue "heavy" (1) and no worker consumes it. Start one:'
        " docker compose run --detach worker celery -A dagster_stack.app worker -n heavy@%h -Q heavy"
    ]

    # And that a worker came, once
    broker.consumers["heavy"] = 1
    for _ in range(3):
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()
    assert driven.reported.count('A worker consumes queue "heavy" now.') == 1


def test_workers_that_are_busy_since_before_they_lost_the_broker_are_told_of_as_such(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a queue whose only workers are there and subscribe when they are free
    broker.workers["heavy"] = ["heavy@b", "heavy@a"]
    driven.send("heavy")

    # When a minute passes, then that is said, once, and they are seldom asked
    for _ in range(30):
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()
    told = [line for line in driven.reported if "Steps wait" in line]
    assert told == [
        'Steps wait in queue "heavy" (1) until a worker is free: heavy@a, heavy@b work on others.'
    ]
    assert broker.asked <= 3

    # And when they are gone, then that too, once
    broker.workers.clear()
    for _ in range(30):
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()
    assert len([line for line in driven.reported if "no worker consumes" in line]) == 1


def test_in_the_embedded_mode_the_command_is_that_of_make_dev(
    instance: DagsterInstance, broker: Broker, clock: Clock
) -> None:
    broker.broker_url = "filesystem://"
    with ExitStack() as stack:
        driven = Driven(instance, broker, step_jobs.prioritized, stack)
        driven.send("heavy")
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()

        (told,) = (line for line in driven.reported if "no worker consumes" in line)
    assert told.endswith("Start one: DEV_QUEUES=dagster,heavy make dev")


def test_a_queue_that_loses_its_worker_again_is_told_again(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    driven.send("heavy")

    for consumers in (0, 1, 0):
        broker.consumers["heavy"] = consumers
        clock.sleep(QUEUE_LOOK_SECS)
        driven.look()

    assert len([line for line in driven.reported if "no worker consumes" in line]) == 2


def test_within_five_seconds_the_run_log_tells_of_a_queue_without_worker() -> None:
    assert QUEUE_LOOK_SECS < 5


def test_an_empty_queue_without_worker_is_no_matter(driven: Driven, broker: Broker, clock: Clock) -> None:
    """Its steps were taken; a worker that stops has cancelled its consumer while its last step runs."""
    driven.send("one")
    broker.take()

    clock.sleep(QUEUE_LOOK_SECS)
    driven.look()

    assert not [line for line in driven.reported if "no worker consumes" in line]


# --- calling back -------------------------------------------------------------------------------------------------------


def test_revoked_steps_are_called_back_from_queues_and_workers(driven: Driven, broker: Broker) -> None:
    # Given a step that runs, one that waits in its queue
    driven.send("one", "unimportant")
    broker.take()

    driven.dispatch.call_back(driven.instance)

    # Then the one is interrupted, the other dropped by the worker that gets it
    ((ids, options),) = broker.revoked
    assert set(ids) == {driven.task("one"), driven.task("unimportant")}
    assert options == {"terminate": True, "signal": "SIGINT"}


def test_revoked_steps_that_wait_for_the_broker_are_never_sent(driven: Driven, broker: Broker) -> None:
    broker.away = True
    driven.send("one")

    driven.dispatch.call_back(driven.instance)

    broker.away = False
    driven.dispatch.send(driven.context)
    assert broker.sent == []


@pytest.mark.parametrize("error", CONTROL_ERRORS, ids=lambda error: type(error).__name__)
def test_a_run_can_be_stopped_while_the_broker_is_away(
    driven: Driven, broker: Broker, error: Exception
) -> None:
    """Nobody can be called back then; whoever gets such a step asks the event log and drops it."""
    driven.send("one")
    broker.control_error = error

    driven.dispatch.call_back(driven.instance)

    assert broker.revoked == []


def test_without_steps_nothing_is_revoked(driven: Driven, broker: Broker) -> None:
    driven.dispatch.call_back(driven.instance)

    assert broker.revoked == []
