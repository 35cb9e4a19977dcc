"""One host: what follows from each look, and other commands beside it. What comes of it on a real stack: tests/stack/test_autoscale.py."""

from dataclasses import replace

import pytest

from scripts import env_file, turns, unfinished
from scripts.autoscaling import controller, services
from scripts.autoscaling.decisions import LEFT_SECS, REST_SECS
from scripts.autoscaling.limits import Limits
from scripts.console import Failure
from tests.unit.autoscaling.cluster import COOLDOWN, GB, SERVICES, Cluster, Killed


def test_there_are_as_many_workers_as_messages(alone: Cluster) -> None:
    alone.messages |= {"dagster": 5, "heavy": 7}

    assert alone.look() == [5, 0, 0]
    assert alone.look() == [5, 0, 0]


def test_a_message_brings_the_first_worker_of_a_service_that_has_none(alone: Cluster) -> None:
    alone.look()
    assert alone.numbers("worker-own") == [0, 0, 0]

    alone.messages["own"] = 1
    alone.look()
    assert alone.numbers("worker-own") == [1, 0, 0]


def test_on_few_processors_one_begins_after_the_other(alone: Cluster) -> None:
    alone.first.processors = 2
    alone.messages["dagster"] = 5

    assert alone.look() == [2, 0, 0]
    alone.first.change(alone.first.running()[-1].id, health="starting")
    assert alone.look() == [2, 0, 0]
    alone.first.change(alone.first.running()[-1].id, health="healthy")
    assert alone.look() == [3, 0, 0]


def test_wish_workers_and_reason_are_noted(alone: Cluster) -> None:
    alone.messages["dagster"] = 21
    alone.look(times=2)

    assert [each["worker"] for each in alone.notes] == [
        {"wish": 8, "running": 1, "reason": "maximum", "least": 1, "most": 8},
        {"wish": 8, "running": 8, "reason": "maximum", "least": 1, "most": 8},
    ]
    # And again before they count as nobody's
    alone.look(controller.NOTE_SECS + 1)
    assert len(alone.notes) == 3


def test_new_workers_count_with_all_their_memory_before_they_have_taken_it(alone: Cluster) -> None:
    alone.messages["dagster"] = 21
    alone.first.memory = 5 * GB

    assert alone.look() == [3, 0, 0]
    assert alone.look() == [3, 0, 0]
    assert alone.look(controller.FRESH_SECS) == [5, 0, 0]


def test_no_more_begin_than_find_a_connection_however_many_there_must_be(
    alone: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.set_value("POSTGRES_MAX_CONNECTIONS", str(60 + 2 * (4 + 3)), alone.env)
    service = replace(SERVICES[0], limits=Limits("worker", 5, 8))
    monkeypatch.setattr(services, "scaled", lambda: [service])

    assert alone.look(times=2) == [3, 0, 0]
    assert alone.notes[-1]["worker"]["reason"] == "connections"
    assert (
        capsys.readouterr().out.count(
            "worker: 3 of the 5 that there must be at least. Set POSTGRES_MAX_CONNECTIONS="
        )
        == 1
    )


def test_workers_that_were_stopped_by_hand_cost_none_that_works(alone: Cluster) -> None:
    alone.first.has(3)
    stopped, at_work = alone.first.running()[:2], alone.first.running()[2:]
    for each in stopped:
        alone.first.change(each.id, state="exited")
    alone.messages["dagster"] = 3

    assert alone.look() == [3, 0, 0]
    assert set(at_work) <= set(alone.first.running())


def test_services_share_the_connections_that_are_left(alone: Cluster) -> None:
    env_file.set_value("POSTGRES_MAX_CONNECTIONS", str(60 + 2 * (4 + 1 + 3)), alone.env)
    alone.messages |= {"dagster": 3, "own": 2}
    alone.look()

    assert (alone.numbers()[0], alone.numbers("worker-own")[0]) == (3, 1)


def test_after_a_quiet_time_the_one_that_rests_goes(alone: Cluster) -> None:
    alone.first.has(1)
    busy, idle = alone.first.running()
    alone.held = {busy.id: 1}
    alone.look()

    assert alone.look(COOLDOWN) == [2, 0, 0]
    assert alone.rests == {idle.id: 30}
    assert alone.look() == [1, 0, 0]
    assert alone.first.asked[-2:] == [f"stop {idle.name}", f"rm {idle.name}"]
    assert alone.first.running() == [busy]


def test_one_that_rested_when_it_was_asked_long_ago_is_not_stopped(
    alone: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rest may be over, and it at work."""
    monkeypatch.setattr(services, "scaled", lambda: SERVICES[::-1])
    alone.first.has(1)
    alone.look()
    alone.look(COOLDOWN)

    # When an engine takes its time for a worker of another service, in the same look
    def slowly() -> None:
        alone.now += 20

    alone.first.makes = slowly
    alone.messages["own"] = 1

    assert alone.look() == [2, 0, 0]
    assert alone.look() == [1, 0, 0]


def test_the_rest_is_renewed_before_the_container_is_stopped(alone: Cluster) -> None:
    """To stop one may take a while, above all by ssh."""
    alone.first.has(1)
    alone.look()
    alone.look(COOLDOWN)
    (going,) = alone.rests
    alone.rests[going] = LEFT_SECS
    alone.first.refuses = "stop"
    alone.look()

    assert alone.questions[-1] == {"rest": {f"dagster@{going}": REST_SECS}}


@pytest.mark.parametrize("state", ["exited", "created"])
def test_nothing_is_started_for_a_stack_that_is_down(alone: Cluster, state: str) -> None:
    alone.first.containers.clear()
    alone.first.has(1, "daemon")
    alone.first.change(alone.first.containers[0].id, state=state)
    alone.messages["dagster"] = 4

    assert alone.look() == [0, 0, 0]
    assert (alone.questions, alone.closed) == ([], 1)


def test_another_command_has_the_stack_for_itself(alone: Cluster) -> None:
    """`make deploy` must not find a worker of the former code that was made meanwhile."""
    alone.messages["dagster"] = 4

    with turns.turn("make deploy"):
        assert alone.look() == [1, 0, 0]
    # And no container with a former login either
    assert alone.closed == 1
    assert alone.look() == [4, 0, 0]


def test_who_waits_for_it_is_not_told_that_it_must_end(
    alone: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "ask", lambda _: pytest.fail(turns.held_by(turns.file("turn"))))

    with pytest.raises(pytest.fail.Exception, match="one look of make autoscale"):
        alone.look()


@pytest.mark.parametrize("state", [unfinished.RESTORING, unfinished.RESTORED])
def test_nothing_is_done_before_a_restore_is_complete_and_somebody_has_chosen(
    alone: Cluster, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    alone.messages["dagster"] = 4
    unfinished.note(state)

    assert alone.look() == [1, 0, 0]
    assert "`make restore` completes it" in (out := capsys.readouterr().out) or "make restore RUNS=" in out


@pytest.mark.parametrize("command", ["create", "start"])
def test_one_that_was_killed_while_workers_began_is_followed_by_one_that_goes_on(
    alone: Cluster, command: str
) -> None:
    alone.messages["dagster"] = 3
    alone.first.kills_at = command
    with pytest.raises(Killed):
        alone.look()
    alone.first.kills_at = ""
    alone.begin()

    assert alone.look() == [3, 0, 0]
    assert env_file.read(alone.env)["WORKERS"] == "3"


@pytest.mark.parametrize("command", ["stop", "rm"])
def test_one_that_was_killed_while_a_worker_went_is_followed_by_one_that_goes_on(
    alone: Cluster, command: str
) -> None:
    alone.first.has(1)
    env_file.set_value("WORKERS", "2", alone.env)
    busy, _ = alone.first.running()
    alone.held = {busy.id: 1}
    alone.messages["dagster"] = 1
    alone.look()
    alone.look(COOLDOWN)
    alone.first.kills_at = command
    with pytest.raises(Killed):
        alone.look()
    alone.first.kills_at = ""
    alone.begin()

    alone.look()
    alone.look(COOLDOWN)
    assert alone.look() == [1, 0, 0]
    assert [each for each in alone.first.containers if each.service == "worker"] == [busy]
    # And `make up` finds nothing to do
    assert env_file.read(alone.env)["WORKERS"] == "1"


def test_a_failure_is_said_once_and_tried_again(alone: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    alone.messages["dagster"] = 4
    alone.silent_for = Failure("the stack does not answer")
    alone.look(times=2)
    assert capsys.readouterr().out.count("does not answer") == 1

    alone.silent_for = None
    assert alone.look() == [4, 0, 0]
