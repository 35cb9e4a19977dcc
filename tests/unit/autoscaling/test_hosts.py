"""Several hosts: where workers begin, which one goes, and a host that does not answer.
What comes of it on real engines: tests/hosts/test_autoscale.py."""

import threading
from collections.abc import Callable

import pytest

from scripts import compose, env_file
from scripts.autoscaling.hosts import CREW_SECS, LOST_SECS, PAUSE_SECS, ROOM_SECS, Hosts
from tests.unit.autoscaling.cluster import COOLDOWN, GB, Cluster

# --- up --------------------------------------------------------------------------------------------------


def test_each_new_worker_begins_where_most_memory_is_free(cluster: Cluster) -> None:
    cluster.first.memory, cluster.box2.memory, cluster.box3.memory = 5 * GB, 9 * GB, 4 * GB
    cluster.messages["dagster"] = 6

    assert cluster.look() == [2, 3, 1]
    # And `make up` finds as many in each host's file
    assert cluster.files() == [2, 3, 1]


def test_on_few_processors_one_begins_on_each_host(cluster: Cluster) -> None:
    for machine in cluster.machines.values():
        machine.processors = 2
    cluster.messages["dagster"] = 8

    assert cluster.look() == [2, 1, 1]
    cluster.first.change(cluster.first.running()[-1].id, health="starting")
    cluster.box2.change(cluster.box2.running()[-1].id, health="starting")
    assert cluster.look() == [2, 1, 2]


def test_room_is_that_of_all_hosts_together(cluster: Cluster) -> None:
    cluster.first.memory, cluster.box2.memory, cluster.box3.memory = 3 * GB, 5 * GB, 1 * GB
    cluster.messages["dagster"] = 8

    assert cluster.look() == [2, 2, 0]
    assert cluster.notes[-1]["worker"] == {"wish": 4, "running": 1, "reason": "memory", "least": 1, "most": 8,
                                           "hosts": {"box2": 0, "box3": 0}}  # fmt: skip
    # What has begun counts with all its memory, whatever the host says
    assert cluster.look(ROOM_SECS) == [2, 2, 0]


def test_the_limits_are_those_of_all_hosts(cluster: Cluster) -> None:
    cluster.box2.has(4)
    cluster.box3.has(3)
    cluster.messages["dagster"] = 20

    assert cluster.look(times=3) == [1, 4, 3]
    assert cluster.notes[-1]["worker"] == {"wish": 8, "running": 8, "reason": "maximum", "least": 1, "most": 8,
                                           "hosts": {"box2": 4, "box3": 3}}  # fmt: skip
    # One that begins does not answer yet
    cluster.box2.change(cluster.box2.running()[0].id, health="starting")
    cluster.look(CREW_SECS)
    assert cluster.notes[-1]["worker"]["hosts"] == {"box2": 3, "box3": 3}


def test_room_of_others_is_asked_for_when_a_worker_is_needed_and_kept_for_a_while(cluster: Cluster) -> None:
    cluster.messages["dagster"] = 1
    cluster.look(times=3)
    assert not [line for line in cluster.box2.asked if not line.startswith("ps")]

    cluster.first.memory = cluster.box2.memory = cluster.box3.memory = 0
    cluster.messages["dagster"] = 2
    cluster.look(times=5)
    (line,) = [line for line in cluster.box2.asked if line.startswith("run")]
    assert "--network none" in line
    cluster.look(ROOM_SECS)
    assert len([line for line in cluster.box2.asked if line.startswith("run")]) == 2


def test_others_are_asked_for_their_crews_now_and_then_and_each_time_while_one_begins(
    cluster: Cluster,
) -> None:
    cluster.box2.has(1)
    cluster.look(times=CREW_SECS)
    assert len(cluster.box2.asked) == 1

    cluster.box2.change(cluster.box2.running()[0].id, health="starting")
    cluster.look(times=5)
    assert len(cluster.box2.asked) == 6


def test_one_host_alone_asks_no_other_engine_and_nothing_more_of_its_own(alone: Cluster) -> None:
    cluster = alone
    cluster.messages["dagster"] = 3

    assert cluster.look(times=2) == [3, 0, 0]
    assert not cluster.box2.asked
    ps = " ".join(compose.listing("dagster-celery-stack"))
    assert cluster.first.asked[:3] == [ps, "compose --progress quiet create --no-recreate worker", ps]
    assert sorted(cluster.first.asked[3:]) == [ps, "start stack-worker-3", "start stack-worker-4"]


def test_a_service_of_your_own_stays_on_the_first_host(cluster: Cluster) -> None:
    cluster.messages["own"] = 2
    cluster.look()

    assert cluster.numbers("worker-own") == [2, 0, 0]


def test_those_who_stand_on_a_host_unknown_to_the_controller_stay(cluster: Cluster) -> None:
    """Compose would take away what it is told that there are too many of."""
    cluster.look()
    cluster.box2.has(3)
    cluster.first.memory = cluster.box3.memory = 0
    cluster.messages["dagster"] = 2

    assert cluster.look() == [1, 4, 0]


def test_a_host_with_another_image_gets_no_worker_and_is_named_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.box2.image = "sha256:0"
    cluster.messages["dagster"] = 3
    cluster.look()
    cluster.messages["dagster"] = 8
    cluster.look(ROOM_SECS)

    assert cluster.box2.running() == []
    assert sum(cluster.numbers()) == 8
    assert capsys.readouterr().out.count("`make up` brings this one") == 1


def test_a_host_that_can_make_none_leaves_the_work_to_others(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.box2.memory, cluster.box2.refuses = 99 * GB, "create"
    cluster.messages["dagster"] = 3

    assert cluster.look() == [1, 0, 0]
    assert sum(cluster.look()) == 3
    assert "box2: no worker begins there: can't create" in capsys.readouterr().out
    cluster.box2.refuses = ""
    cluster.first.memory = cluster.box3.memory = 0
    cluster.messages["dagster"] = 4
    settle(lambda: cluster.look(ROOM_SECS)[1] == 1)


# --- connections -----------------------------------------------------------------------------------------


def test_connections_bound_what_begins_anywhere(cluster: Cluster) -> None:
    env_file.set_value("POSTGRES_MAX_CONNECTIONS", str(60 + 2 * (4 + 1 + 3 + 2)), cluster.env)
    cluster.messages["dagster"] = 8

    assert sum(cluster.look(times=3)) == 3
    assert cluster.notes[-1]["worker"]["reason"] == "connections"


# --- down ------------------------------------------------------------------------------------------------


def quiet(cluster: Cluster) -> None:
    cluster.look()
    cluster.look(COOLDOWN)


def test_who_holds_least_goes_wherever_it_is(cluster: Cluster) -> None:
    cluster.box2.has(2)
    env_file.set_value("WORKERS", "2", cluster.env.with_name(".env.box2"))
    idle = cluster.box2.running()[1]
    cluster.held = {each.id: 1 for machine in cluster.machines.values() for each in machine.running()}
    cluster.held[idle.id] = 0
    cluster.messages["dagster"] = 2
    quiet(cluster)

    # It rests first
    assert cluster.numbers() == [1, 2, 0]
    assert set(cluster.rests) == {idle.id}
    assert cluster.look() == [1, 1, 0]
    assert idle not in cluster.box2.containers
    assert cluster.files() == [1, 1, 0]
    # And those that work stay
    assert cluster.look(COOLDOWN, times=3) == [1, 1, 0]


def test_one_goes_though_a_host_takes_its_time_to_say_who_is_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.box2.has(2)
    look = cluster.controller.hosts.look

    def slowly(now: float) -> None:
        look(now)
        cluster.now += 8

    monkeypatch.setattr(cluster.controller.hosts, "look", slowly)
    quiet(cluster)

    assert sum(cluster.look()) == 2


def test_the_fewest_are_those_of_all_hosts(cluster: Cluster) -> None:
    cluster.box2.has(1)
    cluster.box3.has(1)
    cluster.look(times=5)

    assert sum(cluster.look(COOLDOWN, times=9)) == 1


def test_workers_that_were_stopped_by_hand_cost_none_that_works_there(cluster: Cluster) -> None:
    cluster.look()
    cluster.box2.has(3)
    stopped, at_work = cluster.box2.running()[:2], cluster.box2.running()[2:]
    for each in stopped:
        cluster.box2.change(each.id, state="exited")
    cluster.first.memory = cluster.box3.memory = 0
    cluster.messages["dagster"] = 2

    assert cluster.look() == [1, 2, 0]
    assert set(at_work) <= set(cluster.box2.running())


def test_a_container_that_was_stopped_and_not_removed_goes_on_its_host(cluster: Cluster) -> None:
    cluster.box2.has(2)
    cluster.box2.change("stack-worker-1", state="exited")
    cluster.messages["dagster"] = 2
    cluster.look()

    assert [each.name for each in cluster.box2.containers] == ["stack-worker-2"]
    assert cluster.files() == [1, 1, 0]


# --- a host that does not answer -------------------------------------------------------------------------


@pytest.fixture
def away(cluster: Cluster) -> Cluster:
    """Two workers here, three on box2, whose engine can't be asked any more."""
    cluster.first.has(1)
    cluster.box2.has(3)
    cluster.messages["dagster"] = 5
    cluster.look()
    cluster.box2.problem = "box2: no route"
    cluster.look(CREW_SECS)
    return cluster


def test_it_is_named_once_and_asked_again_after_a_pause(
    capsys: pytest.CaptureFixture[str], away: Cluster
) -> None:
    asked = len(away.box2.asked)
    away.look(times=PAUSE_SECS - 1)
    assert len(away.box2.asked) == asked
    away.look(2)
    settle(lambda: len(away.box2.asked) > asked)
    away.look()
    assert capsys.readouterr().out.count("no route") == 1


def settle(happened: Callable[[], bool]) -> None:
    """A host that is left out is asked aside."""
    waited = threading.Event()
    for _ in range(200):
        if happened():
            return
        waited.wait(0.05)
    raise AssertionError("it did not happen")


def test_its_workers_count_as_long_as_they_answer_the_roll_call(away: Cluster) -> None:
    assert away.look(times=2 * LOST_SECS) == [2, 3, 0]
    assert away.notes[-1]["worker"]["running"] == 5
    # Whether it has none is not for the controller to say
    assert away.notes[-1]["worker"]["hosts"] == {"box3": 0}


def test_one_answer_that_is_missed_changes_nothing(away: Cluster) -> None:
    away.look(times=LOST_SECS)
    away.powerless = {"box2"}
    assert away.look(times=LOST_SECS - 2) == [2, 3, 0]
    away.powerless = set()
    assert away.look(times=LOST_SECS) == [2, 3, 0]


def test_when_its_power_has_gone_as_many_begin_elsewhere(away: Cluster) -> None:
    away.powerless = {"box2"}
    away.look(times=LOST_SECS)

    here, there, other = away.look()
    assert (here + other, there) == (5, 3)
    # And no more than that
    assert away.look(times=LOST_SECS) == [here, there, other]


def test_none_of_its_workers_is_chosen_to_go(away: Cluster) -> None:
    away.messages["dagster"] = 1
    quiet(away)
    away.look(times=9)

    assert away.numbers() == [0, 3, 0]
    assert not set(away.rests) & {each.id for each in away.box2.running()}


def test_one_that_was_never_asked_counts_by_the_roll_call_too(cluster: Cluster) -> None:
    cluster.box2.has(3)
    cluster.box2.problem = "no route"
    cluster.messages["dagster"] = 4

    assert cluster.look(times=3) == [1, 3, 0]


def test_one_that_is_skipped_is_not_asked(cluster: Cluster) -> None:
    cluster.controller.hosts = Hosts(frozenset({"box2"}))
    cluster.box2.has(3)
    cluster.messages["dagster"] = 6

    here, there, other = cluster.look(times=3)
    assert (here + other, there) == (3, 3)
    assert cluster.box2.asked == []


def test_one_that_is_skipped_may_be_shut_out_meanwhile(cluster: Cluster) -> None:
    cluster.controller.hosts = Hosts(frozenset({"box2"}))
    cluster.messages["dagster"] = 2
    cluster.look()
    env_file.set_value("HOSTS", "box3", cluster.env)
    cluster.messages["dagster"] = 4

    assert sum(cluster.look()) == 4


def test_it_holds_nobody_up_while_it_is_silent(away: Cluster) -> None:
    away.box2.silent = threading.Event()
    away.messages["dagster"] = 6

    # It is being asked meanwhile
    assert sum(away.look(PAUSE_SECS)) == 6
    away.box2.silent.set()


def test_one_that_does_not_say_what_room_it_has_holds_them_up_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a host that can't start a container in time
    cluster.box2.refuses = "run"
    cluster.messages["dagster"] = 3
    assert cluster.look() == [2, 0, 1]
    assert "box2: no worker begins there: can't run" in capsys.readouterr().out

    # When it is asked again, and says nothing
    cluster.box2.refuses, cluster.box2.silent, cluster.box2.silent_at = "", threading.Event(), "run"
    cluster.messages["dagster"] = 5

    # Then others begin meanwhile, and on it as well once it has answered
    assert sum(cluster.look(ROOM_SECS)) == 5
    cluster.box2.silent.set()
    cluster.messages["dagster"] = 8
    cluster.first.memory = cluster.box3.memory = 0
    settle(lambda: cluster.look()[1] == 3)


def test_when_it_answers_again_it_belongs_to_them(away: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    away.box2.problem = ""
    away.look(PAUSE_SECS)
    settle(lambda: away.look() is not None and "answers again" in capsys.readouterr().out)

    away.messages["dagster"] = 8
    away.first.memory = away.box3.memory = 0
    assert away.look() == [2, 6, 0]
