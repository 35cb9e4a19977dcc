"""Drill 5: RabbitMQ is gone, silent, full, or out of reach."""

import re
from dataclasses import replace

import pytest

from tests.faults import faults
from tests.faults.drill import SLOW_STEP, Drill
from tests.faults.faults import Fault
from tests.faults.grounds import SMALL
from tests.waiting import wait_until

#: Twice what the drills' broker gives a step, which it looks at once a minute.
LONG_SECS = 150
LONG_STEP = "leaf[n5]"
#: Within which a run whose message could not be sent has started: after 30 s without anybody who drives it.
STARTED_SECS = 60


@pytest.mark.parametrize(
    "fault",
    [
        faults.restarted("rabbitmq"),
        pytest.param(faults.crashed("rabbitmq"), marks=pytest.mark.quick),
        faults.paused("rabbitmq", 60),
        pytest.param(faults.disk_alarm(30), marks=pytest.mark.quick),
    ],
    ids=lambda fault: fault.name,
)
def test_a_broker_that_is_away_only_delays_and_every_worker_works_within_a_minute(
    drill: Drill, fault: Fault
) -> None:
    # Given a load under way
    drill.steps_in_flight()
    # When the broker is away, and comes back: from then on the canaries count
    drill.strike(fault)
    # Then
    drill.nothing_is_lost()


def test_a_step_whose_worker_is_cut_off_from_the_broker_goes_on_and_is_not_executed_twice(
    drill: Drill,
) -> None:
    # Given a load under way, and a worker in the middle of a step that outlasts the broker's patience with it
    drill.steps_in_flight({SLOW_STEP: {"how": "sleep", "seconds": 45}})
    container = drill.container_executing(SLOW_STEP)
    # When it has no way to the broker, which gives the step to another worker, and is back after the step's end
    drill.strike(faults.cut_off("worker", "broker", 60, container))
    # Then that execution counts, which gave its signs of life to the database
    assert drill.nothing_is_lost().run_twice == 0


def test_runs_that_are_handed_over_while_the_broker_is_killed_are_driven_once(drill: Drill) -> None:
    # Given runs that were submitted just now
    drill.runs_just_launched()
    # When the broker is killed
    drill.strike(faults.crashed("rabbitmq"))
    # Then each is driven, and nothing of it twice
    drill.nothing_is_lost()


def test_a_run_launched_while_the_broker_is_away_does_not_wait_for_the_end_of_another(drill: Drill) -> None:
    # Given a load under way that takes minutes
    drill.steps_in_flight(nap=1)
    (long_run,) = drill.run_ids
    # When a run is launched, and handed over, while the broker is away
    with drill.during(replace(faults.stopped("rabbitmq"), name="rabbitmq stopped, a run launched meanwhile")):
        launched = drill.grounds.launch(SMALL)
        wait_until(lambda: drill.grounds.statuses([launched])[launched], 60, "the run is handed over",
                   until=lambda status: status == "STARTING")  # fmt: skip
    # Then it starts while the other goes on, whose message the broker gives to every runner again
    wait_until(lambda: drill.grounds.statuses([launched])[launched], STARTED_SECS, "the run has started",
               until=lambda status: status == "STARTED")  # fmt: skip
    assert drill.grounds.statuses([long_run]) == {long_run: "STARTED"}
    # And both end well; its steps wait behind those of the other
    assert drill.nothing_is_lost().run_twice == 0
    assert drill.grounds.wait_for([launched]) == {launched: "SUCCESS"}


def test_a_step_longer_than_the_brokers_patience_is_executed_once(drill: Drill) -> None:
    # Given a broker that gives everybody 60 s to acknowledge, but for the queues of the stack by its policy
    answer = drill.stack.exec(
        "rabbitmq", "rabbitmqctl", "eval", "application:get_env(rabbit, consumer_timeout)."
    )
    assert re.search(r"\{ok,60000\}", answer.stdout), answer.stdout
    # And a load in which one step takes longer
    drill.steps_in_flight({LONG_STEP: {"how": "sleep", "seconds": LONG_SECS}})

    # When it is executed
    drill.harm_of_its_own(f"a step of {LONG_SECS} s, consumer_timeout 60 s", LONG_STEP)

    # Then it was executed once, like all others
    assert drill.nothing_is_lost().run_twice == 0
