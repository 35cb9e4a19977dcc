"""`make host`: from nothing to steps on another host, with logins of its own, by TLS alone."""

import base64
import time
from pathlib import Path

import pytest

from scripts.hosts.file import prefix
from scripts.hosts.host import Host
from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS
from tests.hosts.engines import FIRST
from tests.stack.stack import Stack
from tests.unit.tls import Authority

#: Seconds from `make host ADD` to the first step there; the base is there, the rest is sent.
JOIN_SECS = 180


def test_a_host_alone_publishes_no_store(alone: Cluster) -> None:
    if alone.stack.settings.get("HOSTS"):
        pytest.skip("hosts have joined: a copy that was kept")
    ports = alone.stack.docker(
        "ps", "--filter", f"name={alone.stack.project}", "--format", "{{.Ports}}"
    ).stdout
    assert "->3000/tcp" in ports
    assert FIRST not in ports


def test_a_host_joins_and_executes_steps(alone: Cluster) -> None:
    began = time.monotonic()
    print(alone.join(HOSTS[0]))
    run_id = alone.succeed(steps=20, seconds=0.3)
    taken = time.monotonic() - began
    print(f"from `make host` to the end of a run: {taken:.0f} s")
    assert alone.places(run_id)[HOSTS[0]] > 0
    assert taken < JOIN_SECS


def test_what_is_as_it_should_be_is_left_alone(cluster: Cluster) -> None:
    before = {name: cluster.ids(name) for name in HOSTS}
    assert "nothing to do" in cluster.stack.make("up").stdout
    assert {name: cluster.ids(name) for name in HOSTS} == before
    listed = cluster.stack.make("hosts").stdout
    assert listed.count("2 worker healthy") == len(HOSTS)
    assert "not as it should be" not in listed


def test_workers_are_scaled_on_one_host(cluster: Cluster) -> None:
    name, other = HOSTS
    kept = set(cluster.ids(name))
    cluster.stack.make("scale", "N=3", f"ON={name}")
    assert len(cluster.ids(name)) == 3
    assert kept < set(cluster.ids(name))
    assert len(cluster.ids(other)) == 2
    cluster.stack.make("scale", "N=2", f"ON={name}")


def test_status_workers_and_logs_show_all_hosts(cluster: Cluster) -> None:
    assert set(cluster.codes()) == {"first", *HOSTS}
    status = cluster.stack.make("status").stdout
    assert all(f"{name} 2 workers" in status for name in HOSTS)
    run_id = cluster.succeed(steps=20)
    of_run = cluster.stack.make("logs", f"RUN={run_id}").stdout
    everything = cluster.stack.make("logs", "FOLLOW=no").stdout
    assert all(f"{name}/worker-" in text for name in HOSTS for text in (of_run, everything))


def test_two_hundred_steps_over_three_hosts(cluster: Cluster) -> None:
    run_id = cluster.succeed(steps=200)
    places = cluster.places(run_id)
    print(places)
    assert sum(places.values()) == 200
    assert all(places[host] > 20 for host in ("first", *HOSTS))


def test_each_host_has_logins_of_its_own(cluster: Cluster) -> None:
    """And workers there know no other, none of people and no store's root."""
    secrets = {
        name: value
        for name, value in cluster.stack.settings.items()
        if name.endswith(("_PASSWORD", "SECRET_KEY", "BACKUP_KEY", "_SECRET"))
    }
    for name in HOSTS:
        found = cluster.settings_of(name)
        for user in ("POSTGRES_USER", "RABBITMQ_USER", "S3_ACCESS_KEY"):
            assert found[user].startswith(prefix(Host(name)))
        container = cluster.containers(name)[0]
        environment = cluster.boxes[name].docker("inspect", "--format", "{{.Config.Env}}", container)
        assert found["POSTGRES_PASSWORD"] in environment
        assert not [secret for secret, value in secrets.items() if value and value in environment]


def test_a_second_stack_of_this_name_does_not_take_a_machine_that_works_here(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Two first hosts by the default name would replace each other's workers there, at each command anew."""
    name, before = HOSTS[0], cluster.ids(HOSTS[0])
    second = Stack(tmp_path / ".env")
    # An address that this machine has, as that of another first host.
    second.env.write_text(f"COMPOSE_PROJECT_NAME={cluster.stack.project}\nCLUSTER_ADDRESS=127.0.0.9\n")
    refused = second.make("host", f"ADD={cluster.boxes[name].url}", f"NAME={name}", check=False)
    assert refused.returncode
    assert f"of the stack at {FIRST}" in refused.stdout + refused.stderr
    assert cluster.ids(name) == before


def test_a_store_with_another_s_certificate_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    name = HOSTS[0]
    assert cluster.refused(name, cluster.settings_of(name)) == set()
    other = base64.b64encode(
        (Authority.make(tmp_path / "other", ["DNS:postgres"]).folder / "ca.pem").read_bytes()
    )
    settings = cluster.settings_of(name) | {"HOST_CA": other.decode()}
    assert cluster.refused(name, settings) == {"postgres", "rabbitmq", "s3"}
