"""The virtual environment of this host: made when needed, again when it is broken or of another Python."""

import os
import sys
from pathlib import Path

import pytest

from scripts import apt, venv
from scripts.apt import Distribution
from scripts.console import ROOT, Failure

PYTHON_WITHOUT_ENSUREPIP = """#!/bin/sh
# As Debian's python3 without python3-venv: `import ensurepip` fails, all else works.
echo "ModuleNotFoundError: No module named 'ensurepip'" >&2
exit 1
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the long commands, which are not run; files are the test's."""
    seen: list[str] = []
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    for name in ("build", "stack", "dev", "flights"):
        (requirements / f"{name}.lock").write_text(f"{name}==1\n")
    monkeypatch.setattr(venv, "REQUIREMENTS", requirements)
    monkeypatch.setattr(venv, "FOLDER", tmp_path / ".venv")
    monkeypatch.setattr(venv, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(venv, "BUILD_FOLDER", tmp_path / ".build")

    def run_logged(title: str, command: list[str], **_: object) -> None:
        seen.append(title)
        if title == "Making .venv":
            make_folder(tmp_path / ".venv")

    monkeypatch.setattr(venv, "run_logged", run_logged)
    return seen


def make_folder(folder: Path, version: str = venv.VERSION) -> None:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "lib" / version).mkdir(parents=True, exist_ok=True)
    for program in ("python", "pip"):
        (folder / "bin" / program).touch()


def test_the_first_time_an_environment_is_made_and_filled(steps: list[str]) -> None:
    assert venv.ensure() == venv.PYTHON

    assert steps == ["Making .venv", "Installing Python packages", "Installing the flights"]


def test_with_the_same_locks_nothing_is_installed_and_that_is_said(
    steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    venv.ensure()
    steps.clear()

    venv.ensure()

    assert steps == []
    assert "are those of requirements/stack.lock" in capsys.readouterr().out


def test_another_lock_is_installed_into_the_same_environment(steps: list[str]) -> None:
    venv.ensure()
    steps.clear()
    (venv.REQUIREMENTS / "stack.lock").write_text("stack==2\n")

    venv.ensure()

    assert steps == ["Installing Python packages", "Installing the flights"]


@pytest.mark.parametrize("broken", ["bin/pip", "bin/python"])
def test_an_environment_that_was_left_half_made_is_made_again(steps: list[str], broken: str) -> None:
    # Given an environment whose making was interrupted
    make_folder(venv.FOLDER)
    (venv.FOLDER / broken).unlink()

    venv.ensure()

    assert steps[0] == "Making .venv"


def test_an_environment_of_another_python_is_made_again(steps: list[str]) -> None:
    make_folder(venv.FOLDER, "python3.9")

    venv.ensure()

    assert steps[0] == "Making .venv"


def test_a_python_that_dagster_does_not_know_yet_is_refused_with_the_cure(
    steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))

    with pytest.raises(Failure, match=r"need Python 3\.11 to 3\.13.*make PYTHON="):
        venv.ensure()

    assert steps == []


@pytest.fixture
def without_ensurepip(steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    python = tmp_path / "python3"
    python.write_text(PYTHON_WITHOUT_ENSUREPIP)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(apt, "distribution", lambda: Distribution("debian", "Debian 12", 12, "bookworm"))
    monkeypatch.setattr(apt, "install", lambda title, packages: steps.extend(packages))
    return steps


def test_as_root_debians_missing_part_of_this_very_python_is_installed(
    without_ensurepip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    venv.ensure()

    assert without_ensurepip[:2] == [f"{venv.VERSION}-venv", "Making .venv"]


def test_as_another_user_the_command_that_installs_it_is_named(
    without_ensurepip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(Failure, match=f"its ensurepip is missing.*sudo apt-get install {venv.VERSION}-venv"):
        venv.ensure()

    assert without_ensurepip == []


def test_the_locks_hold_hashes_and_no_index_address() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "--hash=sha256:" in text, lock
        assert "://" not in text, lock
