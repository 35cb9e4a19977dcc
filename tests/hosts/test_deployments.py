"""Deployments, rollbacks and rotations over all hosts, while runs are under way."""

from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS
from tests.waiting import wait_until

#: Of runs that are under way meanwhile.
STEPS, SECONDS = 40, 0.5


def begun(cluster: Cluster) -> str:
    """A run of which steps are being executed."""
    run_id = cluster.launch(STEPS, SECONDS)
    wait_until(
        lambda: cluster.stack.run(run_id)["status"],
        60,
        "a run began",
        until=lambda status: status == "STARTED",
    )
    return run_id


def one_code(cluster: Cluster) -> str:
    """The code of all workers, which is the same on each host."""
    found = cluster.codes()
    assert set(found) == {"first", *HOSTS}
    (code,) = set().union(*found.values())
    return code


def test_a_deployment_and_a_rollback_reach_all_hosts_and_no_run_fails(cluster: Cluster) -> None:
    former = one_code(cluster)
    cluster.edit("Edited.")
    run_id = begun(cluster)
    print(cluster.stack.make("deploy", "DEPLOY=hand-over").stdout)
    cluster.require_success(run_id, STEPS)
    deployed = one_code(cluster)
    assert deployed != former
    run_id = begun(cluster)
    print(cluster.stack.make("rollback", "DEPLOY=hand-over", "FORCE=1").stdout)
    cluster.require_success(run_id, STEPS)
    assert one_code(cluster) == former


def test_new_passwords_reach_all_hosts_and_former_ones_are_refused(cluster: Cluster) -> None:
    former = {name: cluster.settings_of(name) for name in HOSTS}
    run_id = begun(cluster)
    print(cluster.stack.make("rotate").stdout)
    cluster.require_success(run_id, STEPS)
    for name in HOSTS:
        now = cluster.settings_of(name)
        assert now["POSTGRES_USER"] != former[name]["POSTGRES_USER"]
        assert cluster.refused(name, former[name]) == {"postgres", "rabbitmq", "s3"}
        assert cluster.refused(name, now) == set()
    cluster.succeed(steps=30)


def test_a_host_that_can_t_be_reached_is_named_and_skipped(cluster: Cluster) -> None:
    name = HOSTS[0]
    former = one_code(cluster)
    cluster.edit("Edited while a host is away.")
    cluster.boxes[name].stop()
    refused = cluster.stack.make("deploy", "DEPLOY=hand-over", check=False)
    assert refused.returncode
    assert name in refused.stderr
    assert f"SKIP={name}" in refused.stderr
    print(cluster.stack.make("deploy", "DEPLOY=hand-over", f"SKIP={name}").stdout)
    # Its workers come back with the code that they have, and get none of the steps.
    cluster.boxes[name].start()
    run_id = cluster.succeed(steps=30)
    assert cluster.places(run_id)[name] == 0
    print(cluster.stack.make("up").stdout)
    assert one_code(cluster) != former
    assert cluster.places(cluster.succeed(steps=60))[name] > 0
