"""A daemon on a further host: it takes over when the leader is killed, frozen, cut off, deployed; no tick is lost or doubled."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

import pytest

from scripts import env_file
from tests.hosts.cluster import LOCATION, Cluster
from tests.hosts.conftest import HOSTS
from tests.stack.ticks import AWAY_SECS, TAKEN_OVER_SECS, Ticks, leader, wait_for_another
from tests.waiting import wait_until

BOX = HOSTS[0]
DAEMONS = "label=com.docker.compose.service=daemon"
#: Seconds until a daemon that ended is well again, and stands by.
BACK_SECS = 120


def decide(cluster: Cluster, daemons: int) -> None:
    """So many on the further host, beside the one of the first."""
    file = cluster.stack.env.with_name(f"{cluster.stack.env.name}.{BOX}")
    env_file.set_value("DAEMONS", str(daemons), file)
    print(cluster.stack.make("up").stdout)


@pytest.fixture(scope="module")
def two(alone: Cluster) -> Iterator[Cluster]:
    """One daemon on the first host, which leads, and one on a further one."""
    alone.join(BOX)
    decide(alone, 1)
    wait_until(lambda: leader(alone.stack), 90, "a daemon leads")
    yield alone
    decide(alone, 0)
    assert not alone.containers(BOX, DAEMONS)


def docker(cluster: Cluster, host: str) -> Callable[..., Any]:
    """The docker of the first host, or of a further one; what it prints."""
    if host:
        return cluster.boxes[host].docker
    return lambda *arguments, **options: cluster.stack.docker(*arguments, **options).stdout


def place(found: str) -> tuple[str, str]:
    """A leader's container, and its host: empty for the first one."""
    container, _, host = found.partition(" on ")
    return container, host


def lead_on(cluster: Cluster, host: str) -> None:
    """Let the daemon of a host lead: that of the other one stops for a moment."""
    found = wait_until(lambda: leader(cluster.stack), 60, "a daemon leads")
    container, there = place(found)
    if there != host:
        docker(cluster, there)("restart", container)
        wait_for_another(cluster.stack, found, TAKEN_OVER_SECS)
        wait_until_stands_by(cluster, found, "")
    assert place(leader(cluster.stack))[1] == host


def started_at(cluster: Cluster, found: str) -> str:
    container, host = place(found)
    return str(docker(cluster, host)("inspect", "--format", "{{.State.StartedAt}}", container)).strip()


def wait_until_stands_by(cluster: Cluster, former: str, before: str) -> None:
    """Until a former leader was started again, and is well."""
    container, host = place(former)
    state = "{{.State.StartedAt}} {{.State.Health.Status}}"
    wait_until(
        lambda: docker(cluster, host)("inspect", "--format", state, container).split(), BACK_SECS, f"{former} stands by",
        until=lambda seen: seen[0] != before and seen[1] == "healthy",
    )  # fmt: skip


@contextmanager
def killed(cluster: Cluster, found: str) -> Iterator[None]:
    container, host = place(found)
    docker(cluster, host)("kill", container)
    try:
        yield
    finally:
        docker(cluster, host)("start", container)


@contextmanager
def frozen(cluster: Cluster, found: str) -> Iterator[None]:
    container, host = place(found)
    docker(cluster, host)("pause", container)
    try:
        yield
    finally:
        docker(cluster, host)("unpause", container)


def cut_off(cluster: Cluster, found: str) -> AbstractContextManager[None]:
    return cluster.boxes[place(found)[1]].cut_off()


def mute(cluster: Cluster, found: str) -> AbstractContextManager[None]:
    return cluster.boxes[place(found)[1]].mute()


def test_no_tick_is_lost_or_doubled_whatever_becomes_of_the_leader(two: Cluster) -> None:
    # Given a sensor that counts, and a schedule of each minute
    ticks = Ticks(two.stack, LOCATION)
    first = ticks.start()
    faults = [(killed, ""), (killed, BOX), (frozen, ""), (frozen, BOX), (cut_off, BOX), (mute, BOX)]

    # When the daemon that leads is killed or frozen, or its host is cut off from the stores, and each time comes back
    took = {}
    for fault, host in faults:
        lead_on(two, host)
        former = leader(two.stack)
        before = started_at(two, former)
        with fault(two, former):
            began = time.monotonic()
            wait_for_another(two.stack, former, 2 * TAKEN_OVER_SECS)
            took[fault.__name__, host or "first"] = time.monotonic() - began
            ticks.wait_for_more(AWAY_SECS)
        # The former one ends itself, and stands by again.
        wait_until_stands_by(two, former, before)

    # Then that of the other host led soon
    print({" ".join(how): f"{secs:.1f} s" for how, secs in took.items()})
    assert max(took.values()) < TAKEN_OVER_SECS, took

    # And when new code is deployed while that of the further host leads, the sensor goes on
    lead_on(two, BOX)
    two.edit("Edited under two daemons.")
    began_at = time.time()
    with ThreadPoolExecutor() as pool:
        deployment = pool.submit(two.stack.make, "deploy", "DEPLOY=wait")
        leaders = [leader(two.stack)]
        while not deployment.done():
            if (now := leader(two.stack)) != leaders[-1]:
                leaders.append(now)
            time.sleep(0.5)  # Between two looks.
        print(deployment.result().stdout)
    print(f"who led: {leaders}")
    ticks.wait_for_more(AWAY_SECS)
    rows = two.stack.sql(
        "SELECT extract(epoch FROM timestamp) FROM job_ticks WHERE type = 'SENSOR'"
        f" AND extract(epoch FROM timestamp) > {began_at} ORDER BY 1"
    )
    pauses = [float(later) - float(earlier) for (earlier,), (later,) in pairwise(rows)]
    print(f"the sensor's longest pause: {max(pauses):.1f} s")
    assert max(pauses) < TAKEN_OVER_SECS
    # And each daemon has the new code
    image = two.stack.docker("image", "inspect", "--format", "{{.Id}}", f"{two.stack.project}/dagster").stdout
    assert {image_of(two, host) for host in ("", BOX)} == {image.strip()}

    # And no tick was lost or doubled
    ticks.stop()
    ticks.require_each_once(first)


def image_of(cluster: Cluster, host: str) -> str:
    """The image of the only daemon there."""
    label = f"label=com.docker.compose.project={cluster.stack.project}"
    asked = docker(cluster, host)
    (container,) = asked("ps", "--quiet", "--filter", label, "--filter", DAEMONS).split()
    return str(asked("inspect", "--format", "{{.Image}}", container)).strip()


def test_what_changes_the_code_is_refused_while_a_daemon_can_t_be_told(two: Cluster) -> None:
    two.edit("Edited while a daemon is out of reach.")
    with two.kept_out_of_reach(BOX):
        for skip in ((), (f"SKIP={BOX}",)):
            refused = two.stack.make("deploy", "DEPLOY=hand-over", *skip, check=False)
            assert refused.returncode
            assert f"make host REMOVE={BOX}" in refused.stderr


def test_new_passwords_reach_a_daemon_too(two: Cluster) -> None:
    print(two.stack.make("rotate").stdout)
    lead_on(two, BOX)
    # Its run queue launches.
    two.succeed(steps=10)


def test_a_rollback_ends_with_the_code_of_before_in_each_daemon(two: Cluster) -> None:
    two.edit("Edited to be rolled back.")
    print(two.stack.make("deploy", "DEPLOY=hand-over").stdout)
    deployed = image_of(two, BOX)
    lead_on(two, BOX)
    print(two.stack.make("rollback", "DEPLOY=hand-over", "FORCE=1").stdout)
    images = {image_of(two, host) for host in ("", BOX)}
    assert len(images) == 1
    assert deployed not in images
    two.succeed(steps=10)
