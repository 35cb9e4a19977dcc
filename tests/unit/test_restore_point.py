"""The way back that a migration of the database's schema needs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import backups, compose, restore, restore_point
from scripts.console import Failure


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backups that were made; they are on, and their service runs."""
    (tmp_path / ".env").write_text("COMPOSE_PROJECT_NAME=one\nBACKUP=daily\n")
    monkeypatch.setenv("STACK_ENV_FILE", str(tmp_path / ".env"))
    for name in ("BACKUP", "BACKED_UP"):
        monkeypatch.delenv(name, raising=False)
    made: list[str] = []
    monkeypatch.setattr(backups, "backup", lambda: made.append("a backup"))
    services_are(monkeypatch, "running")
    return made


def services_are(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr(compose, "containers", lambda: [SimpleNamespace(service="backup", state=state)])


def test_where_backups_are_on_one_is_made_and_the_way_back_is_a_command(made: list[str]) -> None:
    way, word, moment = restore_point.require().partition("TO=")
    assert (made, way + word) == (["a backup"], "make restore TO=")
    assert restore.moment(moment.strip("'")) is not None


def test_one_that_was_made_by_hand_will_do(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKED_UP", "1")
    assert restore_point.require() == restore_point.BY_HAND
    assert made == []


def test_without_backups_the_ways_to_have_one_are_said(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP", "off")
    with pytest.raises(Failure, match=r"(?s)BACKUP=daily.*BACKED_UP=1"):
        restore_point.require()
    assert made == []


def test_a_service_that_is_down_can_make_none(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    services_are(monkeypatch, "exited")
    with pytest.raises(Failure, match=r"(?s)is down.*make backups.*BACKED_UP=1"):
        restore_point.require()
    assert made == []
