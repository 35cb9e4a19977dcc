"""One command at a time changes containers."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from scripts import compose, console, turns
from scripts.console import ROOT, Failure

HOLD = """
import sys, time
from scripts import turns
with turns.turn("make deploy"):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another process that has the turn; closing its standard input ends it."""
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    code = f"from scripts import turns\nfrom pathlib import Path\nturns.BUILD_FOLDER = Path({str(tmp_path)!r})\n{HOLD}"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "STACK_ENV_FILE": str(env)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_while_another_command_changes_containers_nothing_is_done(other: subprocess.Popen[str]) -> None:
    with turns.turn_if_free("make autoscale") as holder:
        assert holder == "make deploy"

    # Killed, it has let go
    other.kill()
    other.wait()
    with turns.turn_if_free("make autoscale") as holder:
        assert holder == ""


def test_a_command_waits_for_its_turn_and_says_for_whom(
    other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "TELL_SECS", 0)
    said = console.say

    def end_other(text: str) -> None:
        said(text)
        assert other.stdin
        other.stdin.close()

    monkeypatch.setattr(turns, "say", end_other)

    with turns.turn("make up"):
        assert "Waiting until `make deploy` ends" in capsys.readouterr().out


def test_where_no_lock_can_be_made_the_command_itself_says_what_is_wrong(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path / "file")
    done: list[str] = []

    turns.alone(lambda: done.append("up"))()

    assert done == ["up"]


def test_a_second_controller_is_refused(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BUILD_FOLDER", tmp_path)
    turns.hold("autoscale", "process 1", "runs already ({holder})")

    with pytest.raises(Failure, match=r"runs already \(process 1\)"):
        turns.hold("autoscale", "process 2", "runs already ({holder})")


# --- who takes it ------------------------------------------------------------------------------------------

#: Commands that change containers of the stack, and those that don't: they ask, write a file, or have a stack of their own.
CHANGE = {"up", "deploy", "rollback", "upgrade", "rotate", "move_s3", "down", "demo", "scale", "hosts.membership", "monitoring",
          "restore", "bench", "clean"}  # fmt: skip
LEAVE_ALONE = {"code_versions", "check_s3", "autoscaling", "hosts.listing", "run", "compact", "compose", "logs", "users", "backups",
               "restore_drill", "project_report", "dev", "lock", "dashboards", "test", "versions", "drills"}  # fmt: skip


def test_each_command_is_known_to_change_containers_or_not() -> None:
    named = re.findall(r"-m scripts\.([\w.]+)", (ROOT / "Makefile").read_text())

    assert set(named) == CHANGE | LEAVE_ALONE


class Taken(BaseException):
    """Raised in place of what a command does once it has the turn."""


def take(*_: Any) -> NoReturn:
    raise Taken


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", sorted(CHANGE))
def test_a_command_that_changes_containers_takes_its_turn(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    entries: list[Any] = []
    names: list[str] = []

    def alone(entry: Callable[[], None], name: str = "") -> Callable[[], NoReturn]:
        names.append(name or entry.__name__)
        return take

    monkeypatch.setattr(console, "main", entries.append)
    monkeypatch.setattr(turns, "alone", alone)
    monkeypatch.setattr(turns, "keep_for_successor", take)
    monkeypatch.setattr(compose, "require_env_file", lambda: None)

    runpy.run_module(f"scripts.{command}", run_name="__main__")

    (entry,) = entries
    if command in ("demo", "down"):
        # The first thing that they do
        with pytest.raises(Taken):
            entry()
    else:
        assert entry is take
        # Who waits is told the name that people type
        assert f"\n{names[0]}: ## " in (ROOT / "Makefile").read_text()
