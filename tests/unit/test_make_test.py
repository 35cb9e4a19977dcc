"""`make test`: what goes on beside what, and that no part which failed is forgotten."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import apt, engine, halves, venv
from scripts import test as make_test
from scripts.console import Failure
from tests.waiting import wait_until

#: Stands for the unit tests and for the build of the images: each goes on until it is let go.
PYTHON = """#!/bin/sh
cd {folder}
case "$*" in *" unit") name=units end='{units}' ;; *) name=images end='exit {images}' ;; esac
echo "$(nice) $@ $STACK_ENV_FILE $COMPOSE_PROJECT_NAME $COMPOSE_PROFILES" > $name-begun
trap 'echo > $name-interrupted; exit 130' INT
while [ ! -e $name-go ]; do sleep 0.02; done
echo "$name say so"
echo > $name-ended
eval "$end"
"""


class Parts:
    """The parts of `make test`; lint lets the build end once it and the unit tests have begun, the drills let these end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[str, bool, bool]] = []
        self.codes = {"lint": 0, "tests/stack": 0, "tests/faults": 0}

    def run(self, part: str) -> int:
        """Noted with whether the images were built, and the unit tests were through, by then."""
        for name in ("units", "images"):
            wait_until((self.folder / f"{name}-begun").exists, 20, f"{name} begin", pause=0.02)
        self.seen.append(
            (part, (self.folder / "images-ended").exists(), (self.folder / "units-ended").exists())
        )
        if part in ("lint", "tests/faults"):
            (self.folder / ("images-go" if part == "lint" else "units-go")).touch()
        return self.codes[part]

    def pytest(self, python: str, arguments: list[str]) -> int:
        return self.run(arguments[0])


def install_python(
    folder: Path, monkeypatch: pytest.MonkeyPatch, images: int = 0, units: str = "exit 0"
) -> None:
    program = folder / "python"
    program.write_text(PYTHON.format(folder=folder, images=images, units=units))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("TEST_PROJECT", raising=False)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts = Parts(tmp_path)
    install_python(tmp_path, monkeypatch)
    monkeypatch.setattr(venv, "ensure", lambda lock: tmp_path / "bin" / "python")
    monkeypatch.setattr(apt, "ensure", lambda *_: None)
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(make_test, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(make_test, "lint", lambda: parts.run("lint"))
    monkeypatch.setattr(make_test, "pytest", parts.pytest)
    return parts


def test_the_stack_waits_for_its_images_and_unit_tests_take_the_time_that_is_left(
    parts: Parts, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert make_test.test() == 0

    assert parts.seen == [("lint", False, False), ("tests/stack", True, False), ("tests/faults", True, False)]
    # And the images are those of the tests' own stack, monitoring's too, with settings that are nobody's
    options, env, project, profiles = (parts.folder / "images-begun").read_text().rsplit(maxsplit=3)
    assert options.endswith("-m scripts.images")
    assert env.endswith(".build/images-of-the-tests/.env")
    assert project == make_test.PROJECT
    assert set(profiles.split(",")) == {"postgres", "rabbitmq", "minio", "monitoring"}
    # And the unit tests gave way to all else, and what they say comes last
    priority = str(min(os.nice(0) + 10, 19))
    assert (parts.folder / "units-begun").read_text().split()[:4] == [priority, "-m", "scripts.test", "unit"]
    assert (parts.folder / "units-ended").exists()
    assert capfdbinary.readouterr().out.endswith(b"units say so\n")


def test_a_build_that_fails_is_told_and_left_to_make_up(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_python(parts.folder, monkeypatch, images=1)

    assert make_test.test() == 0

    assert [part for part, *_ in parts.seen][-2:] == ["tests/stack", "tests/faults"]
    assert f"could not be built: see {parts.folder}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["tests/stack", "tests/faults"])
@pytest.mark.parametrize("code", [1, -9])
def test_a_part_that_fails_or_is_killed_fails_all_and_the_others_are_run(
    parts: Parts, part: str, code: int
) -> None:
    parts.codes[part] = code

    assert make_test.test() > 0

    assert len(parts.seen) == 3
    assert (parts.folder / "units-ended").exists()


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_unit_tests_that_fail_or_are_killed_fail_all(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    install_python(parts.folder, monkeypatch, units=end)

    assert make_test.test() > 0

    assert len(parts.seen) == 3


def test_findings_of_the_linters_end_the_build_and_the_unit_tests(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finds() -> int:
        for name in ("units", "images"):
            wait_until((parts.folder / f"{name}-begun").exists, 20, f"{name} begin", pause=0.02)
        raise Failure("ruff finds")

    monkeypatch.setattr(make_test, "lint", finds)

    with pytest.raises(Failure, match="ruff finds"):
        make_test.test()

    assert (parts.folder / "images-interrupted").exists()
    assert (parts.folder / "units-interrupted").exists()
    assert parts.seen == []


def test_without_an_engine_nothing_is_built(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise engine.NoEngine("none here")

    seen: list[str] = []
    monkeypatch.setattr(engine, "ensure", none)
    monkeypatch.setattr(make_test, "lint", lambda: seen.append("lint"))
    monkeypatch.setattr(halves, "unit_tests", lambda python: len(seen) - 1)

    assert make_test.test() == 0

    assert seen == ["lint"]
    assert not (parts.folder / "images-begun").exists()
