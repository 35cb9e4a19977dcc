"""What one look has found."""

from scripts import connections, env_file
from scripts.autoscaling.decisions import Seen
from scripts.autoscaling.sight import Sight, processes_here, seen_of
from tests.unit.autoscaling.cluster import SERVICES, Cluster, member


def test_workers_are_known_by_their_containers() -> None:
    crew = [member("0123456789ab", "stack-worker-7")]
    answers = [
        {"name": "dagster@0123456789ab", "held": 0, "rests": 3},
        {"name": "dagster@ffff", "held": 0, "rests": 0},
    ]

    assert seen_of(crew, answers) == [Seen("0123456789ab", "dagster@0123456789ab", 0, 3)]


def test_workers_of_other_hosts_count_once_for_connections(cluster: Cluster) -> None:
    cluster.box2.has(4)
    env_file.set_value("WORKERS", "4", cluster.env.with_name(".env.box2"))
    found = [*cluster.first.running(), *cluster.box2.running()]
    here = processes_here(Sight(1, SERVICES, found, {}))

    assert here == 1
    # 200 = 60 for the rest + 2 × (4 runs + 1 here + 4 on box2 + 3 by hand + 58)
    assert connections.room(here) == 58
