"""`make test-versions`: which releases each set asks for, and what is run with them."""

import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest

from scripts import halves, versions
from scripts.console import ROOT, Failure

PROJECT = """
[project]
name = "mine"
dependencies = [
    "dagster>=1.13.13,==1.13.*", # With a reason.
    "celery==5.7.*",
    "sqlalchemy<2.1",
    "boto3",
    "rich>=14",
]
"""


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("oldest", ["dagster==1.13.13", "celery==5.7.0", "sqlalchemy<2.1", "boto3", "rich==14"]),
        ("newest", ["dagster>=1.13.13,==1.13.*", "celery==5.7.*", "sqlalchemy<2.1", "boto3", "rich>=14"]),
        ("latest", ["dagster>=1.13.13", "celery>=5.7", "sqlalchemy<2.1", "boto3", "rich>=14"]),
    ],
)
def test_a_set_asks_for_its_releases_and_keeps_what_is_excluded_with_a_reason(
    name: str, asked: list[str]
) -> None:
    text = versions.with_requirements(PROJECT, versions.SETS[name])

    assert tomllib.loads(text)["project"]["dependencies"] == asked
    assert "# With a reason." in text


@pytest.mark.parametrize("name", versions.SETS)
def test_each_requirement_of_the_platform_is_understood(name: str) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    found = tomllib.loads(versions.with_requirements(text, versions.SETS[name]))["project"]["dependencies"]

    assert len(found) == len(tomllib.loads(text)["project"]["dependencies"])
    # These tests run in the copies too, whose own bounds are those of a set
    assert not (name == "oldest" and any(">=" in each for each in found))


def test_a_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETS", "oldest,eldest")

    with pytest.raises(Failure, match="SETS=eldest: there are oldest, newest, latest"):
        versions.versions()


@pytest.mark.parametrize("code", [0, 1])
def test_without_named_tests_a_set_has_the_unit_tests_in_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/stack.lock").touch()
    monkeypatch.setenv("SETS", "oldest")
    monkeypatch.delenv("TESTS", raising=False)
    monkeypatch.delenv("STACK", raising=False)
    monkeypatch.setattr(versions, "prepare", lambda name: tmp_path)
    ran: list[tuple[Path, Path]] = []

    def unit_tests(python: Path, checkout: Path) -> int:
        ran.append((python, checkout))
        return code

    monkeypatch.setattr(halves, "unit_tests", unit_tests)

    with pytest.raises(Failure, match="releases of oldest") if code else nullcontext():
        assert versions.versions() == 0

    assert ran == [(tmp_path / ".venv/bin/python", tmp_path)]
