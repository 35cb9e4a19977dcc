"""`make scale`: what reaches Compose. What it refuses is in test_makefile."""

from pathlib import Path

import pytest

from scripts import compose, env_file, scale
from scripts.compose import Container
from tests.unit.machines import FakeDocker, calls


@pytest.mark.parametrize("number", ["8", "0", "64"])
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
    assert calls(programs)[-1].endswith("up --detach --no-deps --no-recreate worker")
