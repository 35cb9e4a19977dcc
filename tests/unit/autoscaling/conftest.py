"""A stack on three hosts, and on one."""

from pathlib import Path

import pytest

from scripts import base_image, compose, engine, env_file, turns, unfinished
from scripts.autoscaling import containers, hosts, services
from tests.unit.autoscaling.cluster import COOLDOWN, SERVICES, Cluster


@pytest.fixture
def cluster(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    env.write_text(
        f"AUTOSCALE=worker:1..8,worker-own:0..2\nWORKERS=1\nOWN_WORKERS=0\nHEAVY_WORKERS=0\nAUTOSCALE_COOLDOWN={COOLDOWN}\n"
        "POSTGRES_MAX_CONNECTIONS=200\nRUNNERS=1\nRUNNER_CONCURRENCY=4\nHOSTS=box2,box3,by-hand\n"
    )
    for name in ("box2", "box3"):
        env.with_name(f".env.{name}").write_text(f"HOST_ENGINE=ssh://me@{name}\nWORKERS=0\nHEAVY_WORKERS=0\n")
    env.with_name(".env.by-hand").write_text("HOST_ENGINE=\nWORKERS=3\nHEAVY_WORKERS=0\n")
    monkeypatch.delenv("SKIP", raising=False)
    found = Cluster(env)
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr(unfinished, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(compose, "compose", lambda: ["docker", "compose"])
    monkeypatch.setattr(containers, "command", found.command)
    monkeypatch.setattr(services, "scaled", lambda: list(SERVICES))
    monkeypatch.setattr(
        services, "there", lambda limits, _: SERVICES[0] if limits.service == "worker" else None
    )
    monkeypatch.setattr(base_image, "image_id", lambda _: "sha256:1")
    monkeypatch.setattr(hosts, "image", lambda: "stack/dagster:latest")
    found.first.has(1)
    return found


@pytest.fixture
def alone(cluster: Cluster) -> Cluster:
    """No further host has joined."""
    env_file.set_value("HOSTS", "", cluster.env)
    return cluster
