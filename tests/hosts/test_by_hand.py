"""A host that this one can't reach: its people load the image and start its workers, as docs/several-hosts.md says."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import engine
from scripts.console import ROOT
from scripts.hosts.host import OF_OTHERS
from tests.hosts.cluster import Cluster
from tests.hosts.conftest import HOSTS

NAME = "box4"


@pytest.fixture
def machine(cluster: Cluster) -> Iterator[str]:
    """One that has left the stack; it comes back afterwards."""
    name = HOSTS[0]
    cluster.stack.make("host", f"REMOVE={name}")
    yield name
    cluster.join(name)


def by_hand(cluster: Cluster, machine: str, file: Path, *arguments: str) -> None:
    """What somebody types there, in a checkout with the file that was brought."""
    files = ("--env-file", str(file), "-f", "compose.worker.yaml")
    command = [engine.docker(), "-H", cluster.boxes[machine].url, "compose", *files, *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in OF_OTHERS}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def test_a_host_joins_by_hand_executes_steps_and_is_shut_out(
    cluster: Cluster, machine: str, tmp_path: Path
) -> None:
    # Given logins, and a file that is brought there
    said = cluster.stack.make("host", "ADD=by-hand", f"NAME={NAME}").stdout
    assert f"--env-file .env.{NAME} -f compose.worker.yaml up -d" in said
    file = tmp_path / f".env.{NAME}"
    shutil.copy(cluster.stack.env.with_name(f"{cluster.stack.env.name}.{NAME}"), file)
    # When its people start it
    by_hand(cluster, machine, file, "up", "--detach", "--wait")
    try:
        # Then it executes steps, and is one of the hosts
        run_id = cluster.succeed(steps=60)
        assert int(cluster.stack.metadata(run_id, "count")[NAME]) > 0
        assert f"{NAME} 2 workers" in cluster.stack.make("status").stdout
        assert "by hand" in cluster.stack.make("hosts").stdout
        # And when it is shut out, no store takes its logins
        logins = cluster.settings_of(NAME)
        left = cluster.stack.make("host", f"REMOVE={NAME}").stdout
        assert f"--env-file .env.{NAME} -f compose.worker.yaml down" in left
        assert cluster.refused(machine, logins) == {"postgres", "rabbitmq", "s3"}
    finally:
        by_hand(cluster, machine, file, "down", "--volumes")
