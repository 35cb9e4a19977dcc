"""How `make run` calls the command line in its container. The whole way is in test_makefile."""

from collections.abc import Callable

import pytest

from scripts import compose, run


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What this process would become."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(compose, "become", lambda *arguments: seen.append(arguments))
    monkeypatch.delenv(run.CONFIG_VARIABLE, raising=False)
    return seen


@pytest.mark.parametrize(("terminal", "option"), [(True, False), (False, True)])
def test_only_a_terminal_gets_a_terminal_in_the_container(
    commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, terminal: bool, option: bool
) -> None:
    monkeypatch.setattr(run, "interactive", lambda: terminal)

    command_line: Callable[..., None] = run.command_line
    command_line("workers")

    assert ("--no-TTY" in commands[0]) is option
    assert commands[0][-4:] == ("python", "-m", "dagster_stack", "workers")
    assert "--env" not in commands[0]
