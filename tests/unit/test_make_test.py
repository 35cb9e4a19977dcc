"""`make test`: what goes on beside what, and that no part which failed is forgotten."""

import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import apt, engine, halves, venv
from scripts import test as make_test
from scripts.console import Failure
from tests.waiting import wait_until

#: Stands for the build of the images and for the other part: each goes on until it is let go.
PYTHON = """#!/bin/sh
cd {folder}
case "$*" in *" pytest "*) name=changes end='{changes}' ;; *) name=images end='exit {images}' ;; esac
echo "$@ $STACK_ENV_FILE $COMPOSE_PROJECT_NAME $COMPOSE_PROFILES $TEST_PROJECT" > $name-begun
trap 'echo > $name-interrupted; exit 130' INT
while [ ! -e $name-go ]; do sleep 0.02; done
echo "$name say so"
echo > $name-ended
eval "$end"
"""
#: The parts in their order, with what goes on beside each.
BESIDE = {
    "lint": "images",
    "tests/unit": "images",
    "tests/stack": "changes",
    "tests/faults": "changes",
    "tests/browser": "",
}


class Parts:
    """The parts of `make test`: the last one beside which something goes on lets that end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []
        self.codes = dict.fromkeys(BESIDE, 0)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def run(self, part: str) -> int:
        """Noted once what goes on beside it has begun, and while it does."""
        beside = BESIDE[part]
        if not beside:
            assert self.has("changes-ended")
            self.seen.append(part)
            return self.codes[part]
        wait_until((self.folder / f"{beside}-begun").exists, 20, f"{beside} begin", pause=0.02)
        assert not self.has(f"{beside}-ended")
        assert self.has("images-ended") == (beside == "changes")
        self.seen.append(part)
        if part in ("tests/unit", "tests/faults"):
            (self.folder / f"{beside}-go").touch()
        return self.codes[part]

    def pytest(self, python: str, arguments: list[str]) -> int:
        return self.run(arguments[0])


def install_python(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: int = 0,
    changes: str = "exit 0",
) -> None:
    program = folder / "python"
    program.write_text(PYTHON.format(folder=folder, images=images, changes=changes))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("TEST_PROJECT", raising=False)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts = Parts(tmp_path)
    install_python(tmp_path, monkeypatch)
    monkeypatch.setattr(venv, "ensure", lambda lock: tmp_path / "python")
    monkeypatch.setattr(apt, "ensure", lambda *_: None)
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(make_test, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(make_test, "lint", lambda: parts.run("lint"))
    monkeypatch.setattr(make_test, "pytest", parts.pytest)
    monkeypatch.setattr(halves, "unit_tests", lambda _: parts.run("tests/unit"))
    return parts


def test_two_parts_go_on_beside_each_other_once_there_are_images(
    parts: Parts, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert make_test.test() == 0

    assert parts.seen == list(BESIDE)
    # And the images are those of the tests' own stack, monitoring's too, with settings that are nobody's
    options, env, project, profiles = (parts.folder / "images-begun").read_text().rsplit(maxsplit=3)
    assert options.endswith("-m scripts.images")
    assert env.endswith(".build/images-of-the-tests/.env")
    assert project == make_test.PROJECT
    assert set(profiles.split(",")) == {"postgres", "rabbitmq", "minio", "monitoring"}
    # And what changes a stack has one of its own
    command, other = (parts.folder / "changes-begun").read_text().rsplit(maxsplit=1)
    assert other == f"{make_test.PROJECT}-changed"
    assert " ".join(make_test.CHANGES) in command
    assert parts.has("changes-ended")
    assert capfdbinary.readouterr().out.endswith(b"changes say so\n")


def test_a_build_that_fails_is_told_and_left_to_make_up(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_python(parts.folder, monkeypatch, images=1)

    assert make_test.test() == 0

    assert parts.seen == list(BESIDE)
    assert parts.has("changes-ended")
    assert f"could not be built: see {parts.folder}" in capsys.readouterr().out


@pytest.mark.parametrize("part", list(BESIDE)[1:])
@pytest.mark.parametrize("code", [1, -9])
def test_a_part_that_fails_or_is_killed_fails_all_and_the_others_are_run(
    parts: Parts, part: str, code: int
) -> None:
    parts.codes[part] = code

    assert make_test.test() > 0

    assert parts.seen == list(BESIDE)
    assert parts.has("changes-ended")


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_what_goes_on_beside_them_and_fails_or_is_killed_fails_all(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    install_python(parts.folder, monkeypatch, changes=end)

    assert make_test.test() > 0

    assert parts.seen == list(BESIDE)
    assert parts.has("changes-ended")


def test_findings_of_the_linters_end_the_build_and_nothing_is_tested(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finds() -> int:
        wait_until((parts.folder / "images-begun").exists, 20, "images begin", pause=0.02)
        raise Failure("ruff finds")

    monkeypatch.setattr(make_test, "lint", finds)

    with pytest.raises(Failure, match="ruff finds"):
        make_test.test()

    assert (parts.folder / "images-interrupted").exists()
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
