"""One command at a time changes containers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import console, turns
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
