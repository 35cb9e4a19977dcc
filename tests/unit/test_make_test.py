"""`make test`: what goes on beside what, and that no part which failed is forgotten."""

import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import apt, engine, halves, venv
from scripts import test as make_test
from scripts.console import Failure
from tests.waiting import wait_until

#: Stands for the build of the images: goes on until it is let go.
BUILD = """#!/bin/sh
echo "$@" "$STACK_ENV_FILE" "$COMPOSE_PROJECT_NAME" "$COMPOSE_PROFILES" > {folder}/begun
trap 'echo > {folder}/interrupted; exit 130' INT
while [ ! -e {folder}/go ]; do sleep 0.02; done
echo > {folder}/built
exit {code}
"""


class Parts:
    """The parts of `make test` in their order; the unit tests wait for the build's begin, and let it go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[str, bool]] = []
        self.codes = {"tests/unit": 0, "tests/stack": 0, "tests/faults": 0}

    def note(self, part: str) -> None:
        """With whether the images were built by then."""
        self.seen.append((part, (self.folder / "built").exists()))

    def unit_tests(self, python: Path) -> int:
        wait_until((self.folder / "begun").exists, 20, "the build begins", pause=0.02)
        code = self.pytest(str(python), ["tests/unit"])
        (self.folder / "go").touch()
        return code

    def pytest(self, python: str, arguments: list[str]) -> int:
        self.note(arguments[0])
        return self.codes[arguments[0]]


def install_build(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    program = folder / "python"
    program.write_text(BUILD.format(folder=folder, code=code))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("TEST_PROJECT", raising=False)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts = Parts(tmp_path)
    install_build(tmp_path, monkeypatch)
    monkeypatch.setattr(venv, "ensure", lambda lock: tmp_path / "bin" / "python")
    monkeypatch.setattr(apt, "ensure", lambda *_: None)
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(make_test, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(make_test, "lint", lambda: parts.note("lint"))
    monkeypatch.setattr(halves, "unit_tests", parts.unit_tests)
    monkeypatch.setattr(make_test, "pytest", parts.pytest)
    return parts


def test_images_are_built_while_code_alone_is_looked_at_and_the_stack_waits_for_them(parts: Parts) -> None:
    assert make_test.test() == 0

    assert parts.seen == [
        ("lint", False),
        ("tests/unit", False),
        ("tests/stack", True),
        ("tests/faults", True),
    ]
    # And they are those of the tests' own stack, monitoring's too, with settings that are nobody's
    options, env, project, profiles = (parts.folder / "begun").read_text().rsplit(maxsplit=3)
    assert options == "-m scripts.images"
    assert env.endswith(".build/images-of-the-tests/.env")
    assert project == make_test.PROJECT
    assert set(profiles.split(",")) == {"postgres", "rabbitmq", "minio", "monitoring"}


def test_a_build_that_fails_is_told_and_left_to_make_up(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_build(parts.folder, monkeypatch, code=1)

    assert make_test.test() == 0

    assert [part for part, _ in parts.seen][-2:] == ["tests/stack", "tests/faults"]
    assert f"could not be built: see {parts.folder}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["tests/unit", "tests/stack", "tests/faults"])
@pytest.mark.parametrize("code", [1, -9])
def test_a_part_that_fails_or_is_killed_fails_all_and_the_others_are_run(
    parts: Parts, part: str, code: int
) -> None:
    parts.codes[part] = code

    assert make_test.test() > 0

    assert len(parts.seen) == 4


def test_findings_of_the_linters_end_the_build(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def finds() -> int:
        wait_until((parts.folder / "begun").exists, 20, "the build begins", pause=0.02)
        raise Failure("ruff finds")

    monkeypatch.setattr(make_test, "lint", finds)

    with pytest.raises(Failure, match="ruff finds"):
        make_test.test()

    assert (parts.folder / "interrupted").exists()
    assert parts.seen == []


def test_without_an_engine_nothing_is_built(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise engine.NoEngine("none here")

    monkeypatch.setattr(engine, "ensure", none)
    (parts.folder / "begun").touch()

    assert make_test.test() == 0

    assert [part for part, _ in parts.seen] == ["lint", "tests/unit"]
    assert not (parts.folder / "begun").read_text()
