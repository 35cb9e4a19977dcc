"""What a store's container does with a volume of another version: it refuses, and makes nothing anew beside the data."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import base_image, code_versions, compose, store_volumes
from scripts.compose import Container
from scripts.console import ROOT, Failure

pytestmark = pytest.mark.skipif(not shutil.which("dpkg"), reason="Debian's dpkg is not here")


def start(store: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script that a container begins with, where every program of the store only says that it was called."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    stubs = {"dpkg-query": "printf 4.0.5-11"}
    stubs |= dict.fromkeys(
        ("initdb", "pg_ctl", "psql", "postgres"), f"echo started; touch {folder}/touched; exit 3"
    )
    for name, body in stubs.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    names = ("POSTGRES_SUPERUSER_PASSWORD", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "RABBITMQ_VHOST",
             *(f"RABBITMQ_{who}{what}" for who in ("", "ADMIN_", "MONITOR_") for what in ("USER", "PASSWORD")))  # fmt: skip
    values = dict.fromkeys(names, "x") | {"PATH": f"{programs}:{os.environ['PATH']}"} | environment
    # What follows writes into the container's /tmp.
    text, _, _ = (ROOT / "docker" / store / "start").read_text().partition("# RabbitMQ's salted SHA-256")
    return subprocess.run(
        ["sh", "-c", text, "start", *arguments], env=values, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("other", ["16", "18"])
def test_postgres_makes_no_empty_cluster_beside_one_of_another_version(tmp_path: Path, other: str) -> None:
    (tmp_path / other).mkdir()
    (tmp_path / other / "PG_VERSION").write_text(f"{other}\n")

    result = start("postgres", tmp_path, PGDATA=str(tmp_path / "17"))

    assert result.returncode == 1
    assert f"the volume has a database of Postgres {other}, and this is Postgres 17" in result.stderr
    assert "pg_dump" in result.stderr
    assert not (tmp_path / "touched").exists()


def test_postgres_opens_its_own_cluster_whatever_an_upgrade_has_left_beside_it(tmp_path: Path) -> None:
    for version in ("16", "17"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "PG_VERSION").write_text(f"{version}\n")

    result = start("postgres", tmp_path, PGDATA=str(tmp_path / "17"))

    assert "Postgres 16" not in result.stderr
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("before", "opens"), [("", True), ("3.12.1-1", True), ("4.0.5-11", True), ("4.2.1-1", False)]
)
def test_rabbitmq_opens_no_volume_of_a_later_version(tmp_path: Path, before: str, opens: bool) -> None:
    if before:
        (tmp_path / "stack-version").write_text(before)

    result = start("rabbitmq", tmp_path, HOME=str(tmp_path))

    assert (result.returncode == 0) == opens, result.stderr
    if opens:
        assert (tmp_path / "stack-version").read_text() == "4.0.5-11"
    else:
        assert "RabbitMQ 4.2.1-1, and this is 4.0.5-11" in result.stderr
        assert "volume rm" in result.stderr


@pytest.mark.parametrize(("there", "opens"), [("17", True), ("16", False), ("", True)])
def test_postgres_says_whether_it_would_open_a_volume_and_leaves_it_alone(
    tmp_path: Path, there: str, opens: bool
) -> None:
    if there:
        (tmp_path / there).mkdir()
        (tmp_path / there / "PG_VERSION").write_text(f"{there}\n")

    result = start("postgres", tmp_path, "check", PGDATA=str(tmp_path / "17"))

    assert (result.returncode == 0) == opens
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("before", "opens"), [("4.0.5-11", True), ("4.2.1-1", False)])
def test_rabbitmq_says_whether_it_would_open_a_volume_and_leaves_it_alone(
    tmp_path: Path, before: str, opens: bool
) -> None:
    (tmp_path / "stack-version").write_text(before)

    result = start("rabbitmq", tmp_path, "check", HOME=str(tmp_path))

    assert (result.returncode == 0) == opens
    assert (tmp_path / "stack-version").read_text() == before


# --- before the container with the former image goes ------------------------------------------------------


@pytest.fixture
def stores(env: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stack with three stores: Postgres runs with its image, RabbitMQ with a former one, MinIO has ended. Gives checks."""
    env.write_text("COMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    states = {"postgres": "running", "rabbitmq": "running", "minio": "exited", "dagit": "running"}
    there = [Container(f"p-{name}-1", name, state, "", 0) for name, state in states.items()]
    monkeypatch.setattr(compose, "containers", lambda: there)
    used = {"postgres": "new", "rabbitmq": "old", "minio": "old", "dagit": "old"}
    monkeypatch.setattr(
        code_versions,
        "inspected",
        lambda _, names: [
            {
                "Image": used[each],
                "Config": {"Image": f"a-former-name/{each}", "Labels": {"com.docker.compose.service": each}},
            }
            for each in (name.split("-")[1] for name in names)
        ],
    )
    images = {f"dagster-celery-stack/{store}": "new" for store in store_volumes.STORES}
    monkeypatch.setattr(base_image, "image_id", lambda name: images.get(name, "of a former name"))
    checks: list[str] = []

    def output(*arguments: str) -> str:
        checks.append(" ".join(arguments[-2:]))
        raise Failure("`docker compose run` failed:\nrabbitmq: the volume is too new")

    monkeypatch.setattr(compose, "output", output)
    return checks


def test_stores_that_get_another_image_are_told_from_those_that_are_not_well(stores: list[str]) -> None:
    assert store_volumes.outdated() == ["rabbitmq"]
    assert store_volumes.unwell() == ["minio"]


def test_a_new_image_that_would_not_open_its_volume_is_refused_in_its_own_words(stores: list[str]) -> None:
    with pytest.raises(Failure, match=r"^rabbitmq: the volume is too new"):
        store_volumes.require_openable()
    assert stores == ["rabbitmq check"]
