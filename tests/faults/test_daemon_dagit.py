"""Drill 4: what takes runs in and hands them over ends in the middle of it."""

from dataclasses import replace

import pytest
import requests

from tests.faults import faults
from tests.faults.drill import Drill
from tests.faults.grounds import SMALL, Grounds
from tests.waiting import wait_until

TAG = "drill/launch"
#: Less than Dagit takes for any answer.
NO_PATIENCE_SECS = 0.001


@pytest.mark.parametrize("service", [pytest.param("daemon", marks=pytest.mark.quick), "dagit"])
def test_runs_just_launched_when_a_service_is_killed_are_driven_once(drill: Drill, service: str) -> None:
    # Given runs that were submitted just now
    drill.runs_just_launched()
    # When the service is gone from one moment to the next
    drill.strike(faults.crashed(service))
    # Then each is driven, by one runner
    assert drill.nothing_is_lost().run_twice == 0


@pytest.mark.parametrize("service", ["daemon", "dagit"])
def test_a_run_under_way_does_not_feel_a_service_that_is_killed(drill: Drill, service: str) -> None:
    # Given a load under way
    drill.steps_in_flight()
    # When the service is gone from one moment to the next
    drill.strike(faults.crashed(service))
    # Then the run went on at once
    verdict = drill.nothing_is_lost()
    assert verdict.run_twice == 0
    assert verdict.recovered_after is not None
    assert verdict.recovered_after < 5


def test_a_run_whose_message_was_sent_twice_is_driven_once(drill: Drill) -> None:
    # Given runs that were handed over while no runner was there
    with drill.during(replace(faults.stopped("runner"), name="each run's message sent twice")):
        drill.runs_just_launched()
        drill.wait_for_messages("runs", 8)
        # When the answer to each hand-over is lost, so that it is sent again
        doubled = drill.grounds.double("runs")
    # Then each is driven once all the same
    assert doubled >= 8
    assert drill.nothing_is_lost().run_twice == 0


def test_a_backfill_goes_on_where_the_killed_daemon_left_it(drill: Drill) -> None:
    # Given a backfill of which some runs exist
    backfill = drill.backfill_begun(20)
    # When the daemon, which makes the others, is killed
    drill.strike(faults.crashed("daemon"))

    # Then there is one run for each partition, no more and no less, and all end
    drill.run_ids = wait_until(
        lambda: drill.grounds.with_tag("dagster/backfill", backfill), 180, "20 runs of the backfill",
        until=lambda found: len(found) >= 20,
    )  # fmt: skip
    drill.nothing_is_lost()
    assert len(drill.grounds.with_tag("dagster/backfill", backfill)) == 20


def test_a_launch_whose_answer_was_lost_makes_one_run_when_it_is_sent_again(drill: Drill) -> None:
    # Given a load under way, and a client that launches one more run and goes before Dagit answers
    drill.steps_in_flight()
    mark = drill.run_ids[0]
    with pytest.raises(requests.Timeout):
        Grounds(replace(drill.stack, patience=NO_PATIENCE_SECS)).launch(SMALL, tags={TAG: mark})

    # When Dagit is killed, and the client asks for a run with its tag, and launches it again if there is none
    drill.strike(replace(faults.crashed("dagit"), name="a launch without an answer, dagit SIGKILL"))
    drill.stack.wait_until_healthy("dagit")
    if not drill.grounds.with_tag(TAG, mark):
        drill.grounds.launch(SMALL, tags={TAG: mark})

    # Then there is one such run, and it ends like the load
    drill.nothing_is_lost()
    (run_id,) = drill.grounds.with_tag(TAG, mark)
    assert drill.grounds.wait_for([run_id]) == {run_id: "SUCCESS"}
