"""`make scale`: what reaches Compose. What it refuses is in test_makefile."""

from pathlib import Path

import pytest

from scripts import compose, connections, env_file, scale
from scripts.compose import Container
from scripts.console import Failure
from tests.unit.machines import FakeDocker, calls


@pytest.mark.parametrize("number", ["8", "0", "60"])
def test_workers_are_added_or_removed_and_the_others_go_on(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    # Given a stack that is up
    FakeDocker().install(programs)
    env.write_text("WORKERS=2\n")
    monkeypatch.setattr(compose, "containers", lambda: [Container("w", "worker", "running", "healthy", 0)])
    monkeypatch.setenv("N", number)

    # When it is scaled
    scale.scale()

    # Then the number holds for the next `make up` too, and no container is made anew
    assert env_file.read(env)["WORKERS"] == number
    (made,) = [call for call in calls(programs) if call.startswith("compose") and "worker" in call]
    assert made.endswith("create --no-recreate worker")


def test_more_workers_than_postgres_has_connections_for_are_refused_with_the_cure(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that allows 200 connections, of which each worker process may take 2
    FakeDocker().install(programs)
    env.write_text("WORKERS=2\nWORKER_CONCURRENCY=4\n")
    monkeypatch.setenv("N", "32")

    # When the stack is to be scaled beyond
    with pytest.raises(Failure) as refusal:
        scale.scale()

    # Then the setting that raises the limit is named with a value that is enough, and nothing has changed
    assert "POSTGRES_MAX_CONNECTIONS=334 or more in .env" in str(refusal.value)
    assert "2 for each of 129 worker processes and 8 runs, 60 for the rest" in str(refusal.value)
    assert env.read_text() == "WORKERS=2\nWORKER_CONCURRENCY=4\n"
    assert calls(programs) == []

    # And with that value they are allowed
    env.write_text(f"{env.read_text()}POSTGRES_MAX_CONNECTIONS=334\n")
    connections.require_connections(32)


def test_the_budget_counts_with_what_a_process_keeps() -> None:
    from dagster_stack.store.connections import DEFAULT_CONNECTIONS

    assert connections.EACH == DEFAULT_CONNECTIONS


def test_what_is_free_of_connections_is_what_make_scale_counts_with(env: Path) -> None:
    env.write_text("POSTGRES_MAX_CONNECTIONS=200\nHEAVY_WORKERS=1\n")

    assert connections.room(1) == 61
    connections.require_connections(61)
    with pytest.raises(Failure):
        connections.require_connections(62)
