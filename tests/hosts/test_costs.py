"""What a step on a further host costs, beside one on the first: same machine, TLS on both ways."""

from statistics import median

from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS

#: Seconds that a step there may take longer.
MOST_SECS = 0.005
#: Steps of a run, one after the other since one worker has them; and runs in turn.
STEPS, RUNS = 100, 7


def only(cluster: Cluster, place: str) -> None:
    """Let one worker, of the first or of a further host, have all steps."""
    for name in HOSTS:
        cluster.stack.make("scale", f"N={int(name == place)}", f"ON={name}")
    cluster.stack.make("scale", f"N={int(place == 'first')}")


def seconds_a_step(cluster: Cluster, place: str) -> float:
    only(cluster, place)
    cluster.succeed(steps=5, seconds=0)
    run_id = cluster.succeed(steps=STEPS, seconds=0)
    assert cluster.places(run_id)[place] == STEPS
    run = cluster.stack.run(run_id)
    return float((run["endTime"] - run["startTime"]) / STEPS)


def test_a_step_on_a_further_host_costs_little_more(cluster: Cluster) -> None:
    """Side by side, since a noisy machine slows both down."""
    found = [(seconds_a_step(cluster, "first"), seconds_a_step(cluster, HOSTS[0])) for _ in range(RUNS)]
    first, further = (median(each) * 1000 for each in zip(*found, strict=True))
    print(f"a step on the first host {first:.1f} ms, on a further one {further:.1f} ms")
    assert median(there - here for here, there in found) < MOST_SECS
    cluster.stack.make("scale", "N=1")
    for name in HOSTS:
        cluster.stack.make("scale", "N=2", f"ON={name}")
