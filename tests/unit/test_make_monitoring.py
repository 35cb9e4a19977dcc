"""`make monitoring`: the profile in .env, and nothing else of it changed."""

import os
from pathlib import Path

import pytest

from scripts import compose, env_file, images, monitoring, preflight
from scripts.console import Failure


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to containers."""
    done: list[str] = []
    monkeypatch.setattr(monitoring, "up", lambda: done.append("up"))
    monkeypatch.setattr(monitoring, "run_logged", lambda _, command: done.append(" ".join(command[-6:])))
    monkeypatch.setattr(compose, "require_env_file", lambda: None)
    monkeypatch.delenv("COMPOSE_PROFILES", raising=False)
    return done


def test_the_profile_is_added_and_all_is_started(started: list[str], env: Path) -> None:
    env_file.write(env, "COMPOSE_PROFILES=postgres,rabbitmq,minio\nMINE=1\n")
    for _ in range(2):
        monitoring.monitoring()
    assert env_file.profiles() == {"postgres", "rabbitmq", "minio", "monitoring"}
    assert env_file.read(env)["MINE"] == "1"
    assert started == ["up", "up"]


def test_off_takes_the_containers_and_the_profile_away(
    started: list[str], env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFF", "1")
    env_file.write(env, "COMPOSE_PROFILES=postgres, monitoring,grafana\n")
    monitoring.monitoring()
    assert env_file.profiles() == {"postgres", "grafana"}
    assert started == ["--stop --force metrics flower prometheus postgres-exporter"]


@pytest.mark.parametrize("off", ["", "0", "no"])
def test_off_may_be_said_in_the_negative(
    started: list[str], env: Path, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    monkeypatch.setenv("OFF", off)
    env_file.write(env, "COMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    monitoring.monitoring()
    assert started == ["up"]


@pytest.mark.parametrize("off", ["", "1"])
def test_an_environment_that_would_win_is_named(
    started: list[str], env: Path, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    env_file.write(env, "COMPOSE_PROFILES=postgres\n")
    monkeypatch.setenv("OFF", off)
    monkeypatch.setenv("COMPOSE_PROFILES", "postgres")
    with pytest.raises(Failure, match="COMPOSE_PROFILES is set in the environment"):
        monitoring.monitoring()
    assert started == []


def test_who_names_monitoring_alone_keeps_the_stores(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In .env
    monkeypatch.delenv("COMPOSE_PROFILES", raising=False)
    env_file.write(env, "COMPOSE_PROFILES=monitoring\n")
    env_file.complete_profiles()
    assert env_file.read(env)["COMPOSE_PROFILES"] == "postgres,rabbitmq,minio,monitoring"
    # In the environment, which is not written anywhere
    monkeypatch.setenv("COMPOSE_PROFILES", "grafana,minio")
    env_file.complete_profiles()
    assert os.environ["COMPOSE_PROFILES"] == "postgres,rabbitmq,minio,grafana"
    assert env_file.read(env)["COMPOSE_PROFILES"] == "postgres,rabbitmq,minio,monitoring"


@pytest.mark.parametrize(
    ("settings", "built"),
    [
        ("COMPOSE_PROFILES=postgres", set()),
        ("COMPOSE_PROFILES=postgres,monitoring", {"prometheus", "postgres-exporter"}),
        # Whoever runs an outside Postgres watches it.
        ("COMPOSE_PROFILES=monitoring\nPOSTGRES_HOST=db", {"prometheus"}),
    ],
)
def test_images_are_built_when_their_profile_is_on(
    started: list[str], env: Path, settings: str, built: set[str]
) -> None:
    env_file.write(env, f"{settings}\n")
    assert {image.service for image in images.wanted()} & {"prometheus", "postgres-exporter"} == built


def test_ports_of_a_profile_are_looked_at_when_it_is_on(
    started: list[str], env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "published_ports", set)
    monkeypatch.setattr(preflight, "bind_problem", lambda *_: None)
    monkeypatch.setattr("scripts.engine.is_elsewhere", lambda: False)
    env_file.write(env, "COMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    assert "port 5555" not in {finding.subject for finding in preflight.ports()}
    env_file.write(env, "COMPOSE_PROFILES=postgres,rabbitmq,minio,monitoring\nFLOWER_PORT=3000\n")
    (twice,) = [finding for finding in preflight.ports() if finding.cure]
    assert twice.found == "asked for twice"
    assert "FLOWER_PORT" in twice.cure
