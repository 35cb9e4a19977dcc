"""`make test-versions`: which releases each set asks for."""

import tomllib

import pytest

from scripts import versions
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
