"""`make autoscale` over several hosts: 1 → 6 → 1 workers, no step executed twice; and a host that loses its power meanwhile."""

from collections import Counter
from collections.abc import Iterator

import pytest

from scripts import env_file
from scripts.autoscaling.hosts import LOST_SECS
from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS
from tests.stack import runs
from tests.stack.autoscaling import DOWN_SECS, UP_SECS, Controller, Haste, controlled, status
from tests.waiting import wait_until

STEPS, STEP_SECS = 300, 5
#: Seconds for all of them on six workers, which come one after the other on two busy cores.
RUN_SECS = 900


def joined(cluster: Cluster) -> list[str]:
    return [name for name in cluster.stack.settings.get("HOSTS", "").split(",") if name]


def numbers(cluster: Cluster) -> list[int]:
    """What the hosts' files say, the first one's first."""
    files = [cluster.stack.settings, *map(cluster.settings_of, joined(cluster))]
    return [int(each["WORKERS"]) for each in files]


def counted(cluster: Cluster) -> list[int]:
    found = Counter(cluster.workers().values())
    return [found[name] for name in ("first", *joined(cluster))]


def wait_for_number(cluster: Cluster, number: int, seconds: float) -> None:
    wait_until(lambda: len(cluster.workers()), seconds, f"{number} workers", until=lambda n: n == number)


@pytest.fixture(scope="module")
def controller(alone: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """One worker, on the first host; one further host has none."""
    if HOSTS[0] not in joined(alone):
        alone.join(HOSTS[0])
    env = alone.stack.env
    files = [env.with_name(f"{env.name}.{name}") for name in joined(alone)]
    before = {file: env_file.read(file)["WORKERS"] for file in files}
    for file in files:
        env_file.set_value("WORKERS", "0", file)
    log = tmp_path_factory.mktemp("autoscale") / "log"
    with controlled(alone.stack, log) as found:
        yield found
        found.end()
        for file, number in before.items():
            env_file.set_value("WORKERS", number, file)
    print(log.read_text())


def test_workers_of_all_hosts_follow_the_work_and_no_step_is_executed_twice(
    alone: Cluster, controller: Controller
) -> None:
    # Given one worker
    (first,) = alone.workers()
    controller.start()
    wait_until(lambda: status(alone.stack), 60, "the controller is at work", until=bool)
    haste = Haste()

    # When there is more work than it can do, then there are six, of all hosts
    run_id = alone.launch(STEPS, STEP_SECS)
    wait_for_number(alone, 6, UP_SECS)
    print(f"six workers: {counted(alone)}")
    assert all(counted(alone))
    assert numbers(alone) == counted(alone)
    found = wait_until(
        lambda: status(alone.stack)["worker"], 30, "figures of six", until=lambda it: it["running"] == 6
    )
    assert (found["wish"], found["reason"], found["most"]) == (6, "maximum", 6)

    # And each step is executed once
    alone.require_success(run_id, STEPS, RUN_SECS)
    executed = runs.executions(alone.stack, run_id)
    assert set(Counter(each.step for each in executed).values()) == {1}
    assert len(executed) == STEPS + 2
    places = alone.places(run_id)
    print(places)
    assert all(places[name] for name in ("first", *joined(alone)))
    haste.require(alone.stack, run_id, {first}, "nap")

    # And then there is one again, wherever it is, and `make up` finds nothing to do
    wait_for_number(alone, 1, DOWN_SECS)
    wait_until(lambda: numbers(alone), 30, "files of one worker", until=lambda found: found == counted(alone))
    assert "nothing to do" in alone.stack.make("up").stdout


def test_when_a_host_loses_its_power_its_workers_begin_elsewhere(
    alone: Cluster, controller: Controller
) -> None:
    # Given one worker here, and one there, of two that there must be
    name, stack = HOSTS[0], alone.stack
    controller.end()
    stack.make("scale", "N=1")
    for each in joined(alone):
        stack.make("scale", f"N={int(each == name)}", f"ON={each}")
    env_file.set_value("AUTOSCALE", "worker:2..4", stack.env)
    controller.start()
    wait_until(lambda: status(stack), 60, "the controller is at work", until=bool)
    assert sorted(alone.workers().values()) == sorted(["first", name])

    # When the power has gone there, then another one begins elsewhere
    alone.boxes[name].lose()
    try:
        wait_for_number(alone, 2, LOST_SECS + UP_SECS)
        assert name not in alone.workers().values()
    finally:
        alone.boxes[name].power_on()

    # And when it is back, there are two again
    wait_until(lambda: name in alone.workers().values(), 60, f"{name} is back", until=bool)
    wait_for_number(alone, 2, DOWN_SECS)
