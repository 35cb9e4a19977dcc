"""A host without power, cut off in each direction, and back; one that is shut out; a store with another's certificate."""

import time

import pytest

from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS
from tests.stack import runs
from tests.waiting import wait_until

#: Seconds after which the steps of a lost host run elsewhere.
ELSEWHERE_SECS = 30
#: Seconds after which one that is back has steps again, with the time of some short runs.
WORKING_SECS = 60
#: Of one step, longer than that.
LONG_SECS = 60


def wait_until_working(cluster: Cluster, run_id: str, name: str) -> None:
    """Until the host executes a step of the run."""
    containers = {each[:12] for each in cluster.ids(name)}

    def working() -> bool:
        return any(
            each.worker.partition("@")[2] in containers for each in runs.executions(cluster.stack, run_id)
        )

    wait_until(working, 60, f"{name} executes a step")


@pytest.fixture
def whole(cluster: Cluster) -> Cluster:
    """All hosts work, with one worker each, so that each has a step of three."""
    cluster.stack.make("up")
    for name in HOSTS:
        cluster.stack.make("scale", "N=1", f"ON={name}")
    return cluster


def test_the_steps_of_a_host_without_power_run_elsewhere(whole: Cluster) -> None:
    name = HOSTS[0]
    run_id = whole.launch(steps=3, seconds=LONG_SECS)
    wait_until_working(whole, run_id, name)
    before = len(runs.executions(whole.stack, run_id))
    whole.boxes[name].lose()
    lost = time.time()
    try:
        whole.stack.make("scale", "N=3")
        wait_until(
            lambda: len(runs.executions(whole.stack, run_id)), 2 * ELSEWHERE_SECS, "its step runs elsewhere",
            until=lambda seen: seen > before,
        )  # fmt: skip
        taken = max(each.at for each in runs.executions(whole.stack, run_id)) - lost
        print(f"elsewhere after {taken:.0f} s")
        assert taken < ELSEWHERE_SECS
    finally:
        whole.boxes[name].power_on()
        whole.stack.make("scale", "N=1")
    whole.require_success(run_id, 3)


@pytest.mark.parametrize("way", ["deaf", "mute", "cut_off"])
def test_a_host_that_is_cut_off_writes_nothing_when_it_is_back(whole: Cluster, way: str) -> None:
    name = HOSTS[0]
    run_id = whole.launch(steps=30, seconds=2)
    wait_until_working(whole, run_id, name)
    with getattr(whole.boxes[name], way)():
        # Others do all of it meanwhile.
        whole.require_success(run_id, 30)
    back = time.time()
    whole.require_success(run_id, 30)
    # Its processes may still wait for an answer that never comes.
    wait_until(lambda: whole.places(whole.succeed(steps=20))[name], WORKING_SECS, f"{name} has steps again")
    print(f"steps again after {time.time() - back:.0f} s")


def test_a_host_that_is_shut_out_has_no_login_any_more(whole: Cluster) -> None:
    name = HOSTS[0]
    former = whole.settings_of(name)
    # It is not asked: its workers go on, and try to come in.
    with whole.kept_out_of_reach(name):
        print(whole.stack.make("host", f"REMOVE={name}").stdout)
    assert whole.containers(name)
    assert whole.refused(name, former) == {"postgres", "rabbitmq", "s3"}
    run_id = whole.succeed(steps=30)
    assert whole.places(run_id)[name] == 0
    whole.join(name)
    assert whole.places(whole.succeed(steps=60))[name] > 0
