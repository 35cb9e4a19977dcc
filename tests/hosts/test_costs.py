"""What a step on a further host costs, beside one on the first: same machine, TLS on both ways."""

from collections.abc import Iterator

import pytest

from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS
from tests.stack import runs

#: Seconds that a step there may take longer.
MOST_SECS = 0.005
#: Steps of a run, which one worker has all; and runs in turn.
STEPS, RUNS = 100, 7
#: Steps whose time counts as one: whatever else is done on this machine makes most of these slower, and never one faster.
TIMED = 20


@pytest.fixture
def usual_workers(cluster: Cluster) -> Iterator[None]:
    """Afterwards, whatever came of it."""
    yield
    cluster.stack.make("scale", "N=1")
    for name in HOSTS:
        cluster.stack.make("scale", "N=2", f"ON={name}")


def only(cluster: Cluster, place: str) -> None:
    """Let one worker, of the first or of a further host, have all steps."""
    for name in HOSTS:
        cluster.stack.make("scale", f"N={int(name == place)}", f"ON={name}")
    cluster.stack.make("scale", f"N={int(place == 'first')}")


def seconds_a_step(cluster: Cluster, place: str) -> float:
    """Of the fastest steps in a row."""
    only(cluster, place)
    cluster.succeed(steps=5, seconds=0)
    run_id = cluster.succeed(steps=STEPS, seconds=0)
    assert cluster.places(run_id)[place] == STEPS
    begun = [each.at for each in runs.executions(cluster.stack, run_id)]
    return min(last - first for first, last in zip(begun, begun[TIMED:], strict=False)) / TIMED


@pytest.mark.usefixtures("usual_workers")
def test_a_step_on_a_further_host_costs_little_more(cluster: Cluster) -> None:
    """In turn, since what slows them down comes and goes."""
    found = [(seconds_a_step(cluster, "first"), seconds_a_step(cluster, HOSTS[0])) for _ in range(RUNS)]
    first, further = map(min, zip(*found, strict=True))
    print(f"a step on the first host {first * 1000:.1f} ms, on a further one {further * 1000:.1f} ms")
    assert further - first < MOST_SECS
