"""How `make run` calls the command line in its container. The whole way is in test_makefile."""

from collections.abc import Callable
from contextlib import suppress

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
