"""How `make run` calls the command line in its container. The whole way is in test_makefile."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from scripts import compose, run


@pytest.mark.parametrize(("terminal", "option"), [(True, False), (False, True)])
def test_only_a_terminal_gets_a_terminal_in_the_container(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, option: bool
) -> None:
    # Given a terminal or none, and nothing that really starts Compose
    commands: list[tuple[str, ...]] = []

    def follow(container: str, arguments: list[str]) -> int:
        commands.append(tuple(arguments))
        assert container in arguments
        return 0

    monkeypatch.delenv(run.CONFIG_VARIABLE, raising=False)
    monkeypatch.setattr(run, "interactive", lambda: terminal)
    monkeypatch.setattr(run, "follow", follow)
    monkeypatch.setattr(compose, "become", lambda *arguments: commands.append(arguments))

    # When the command line is called
    command_line: Callable[..., None] = run.command_line
    with suppress(SystemExit):
        command_line("workers")

    # Then only with a terminal Compose makes one for the container
    (command,) = commands
    assert ("--no-TTY" in command) is option
    assert command[-4:] == ("python", "-m", "dagster_stack", "workers")
    assert "--env" not in command


def test_where_several_locations_have_the_job_one_is_named(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(run, "command_line", lambda *arguments: called.append(arguments))
    for name, value in {"JOB": "nightly", "LOCATION": "sales", "TAGS": "a=b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CONFIG", raising=False)
    env.touch()

    launch: Callable[[], None] = run.run
    launch()

    assert called == [("run", "nightly", "--tags", "a=b", "--location", "sales")]
