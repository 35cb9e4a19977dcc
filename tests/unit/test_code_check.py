"""`make up` and `make deploy` say what the image found in the user's code, and stop where it does not load."""

from typing import Any

import pytest

from scripts import base_image, code_check, compose, images, up
from scripts.compose import Container
from scripts.console import Failure

DAGIT = Container("p-dagit-1", "dagit", "running", "healthy", 0)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the image says, of a stack that is down; the test changes it."""
    answer: dict[str, Any] = {
        "reports": [{"name": "etl", "connections": {}}], "warnings": [], "errors": {}, "code": "1f2e"
    }  # fmt: skip
    monkeypatch.setattr(code_check, "ask", lambda: answer)
    monkeypatch.setattr(compose, "containers", lambda: [])
    return answer


def test_what_would_go_wrong_is_said_and_stops_nothing(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found["warnings"] = ["MY_TOKEN is not set"]

    assert code_check.check() == "1f2e"

    assert capsys.readouterr().out == "  ! MY_TOKEN is not set\n  ✓ the code loads (1 code location)\n"


def test_code_that_does_not_load_is_a_failure_with_its_line(found: dict[str, Any]) -> None:
    found["errors"] = {"etl": "ImportError: no polars\n  etl.py:1  import polars"}

    with pytest.raises(
        Failure, match=r"does not load:\n\netl: ImportError: no polars\n  etl\.py:1  import polars"
    ):
        code_check.check()


@pytest.mark.parametrize(
    ("host", "running", "fails"),
    [("postgres:5432", False, False), ("postgres:5432", True, True), ("api.example.com:443", False, True)],
)
def test_code_that_asks_the_stacks_own_stores_is_tried_once_they_are_up(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, host: str, running: bool, fails: bool
) -> None:
    found["errors"] = {"etl": "OperationalError"}
    found["reports"][0]["connections"] = {host: "etl.py:3"}
    monkeypatch.setattr(compose, "containers", lambda: [DAGIT] if running else [])

    if fails:
        with pytest.raises(Failure):
            code_check.check()
    else:
        code_check.check()


def test_an_image_that_says_something_else_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "output", lambda *_: "no such module")

    with pytest.raises(Failure, match="no such module"):
        code_check.ask()


@pytest.mark.parametrize("fails_at", ["before the swap", "after it", "never"])
def test_what_to_do_next_is_said_once_the_code_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails_at: str
) -> None:
    def fail() -> None:
        raise Failure("it does not load")

    started: list[bool] = []
    for owner, name in (
        (up, "prepare"),
        (images, "ensure"),
        (up, "check_code_location"),
        (code_check, "check"),
    ):
        monkeypatch.setattr(owner, name, lambda: None)
    monkeypatch.setattr(base_image, "image_id", lambda _: "")
    monkeypatch.setattr(compose, "containers", list)
    monkeypatch.setattr(up, "is_up", lambda: False)
    monkeypatch.setattr(up, "start", lambda: started.append(True))
    if fails_at == "before the swap":
        monkeypatch.setattr(code_check, "check", fail)
    elif fails_at == "after it":
        monkeypatch.setattr(up, "check_code_location", fail)

    if fails_at == "never":
        up.up()
    else:
        with pytest.raises(Failure):
            up.up()

    assert started == ([] if fails_at == "before the swap" else [True])
    assert ("Next:" in capsys.readouterr().out) == (fails_at == "never")
