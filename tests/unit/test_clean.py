"""`make clean` destroys data: it asks whoever is there."""

from pathlib import Path

import pytest

from scripts import backups, clean, engine
from scripts.console import Failure
from tests.unit.machines import FakeDocker, calls


@pytest.fixture
def stack(programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack with an .env, and somebody at the terminal."""
    FakeDocker().install(programs)
    env.write_text("COMPOSE_PROJECT_NAME=second\nBASE_IMAGE=x\n")
    monkeypatch.setattr(clean, "attended", lambda: True)
    return programs


def removals(programs: Path) -> list[str]:
    return [call for call in calls(programs) if " down " in call]


def test_a_no_deletes_nothing(
    stack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(clean, "confirm", asked.append)

    clean.clean()

    assert asked == ["Delete all runs, logs and data of second? There is no way back."]
    assert removals(stack) == []
    assert "nothing was deleted" in capsys.readouterr().out


def test_a_yes_deletes_containers_and_volumes_and_keeps_env(
    stack: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "confirm", lambda question: True)

    clean.clean()

    assert len(removals(stack)) == 1
    assert removals(stack)[0].endswith("--profile * down --volumes --remove-orphans")
    assert env.exists()


def test_a_folder_of_backups_that_is_emptied_afterwards_may_have_new_ones(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr(clean, "confirm", lambda question: True)
    backups.known().parent.mkdir()
    backups.known().write_text("/mnt/second-disk")

    clean.clean()

    assert not backups.is_known(Path("/mnt/second-disk"))


def test_what_other_settings_have_left_goes_too(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose knows the door's volume with LOGIN=on alone."""
    asked: list[tuple[str, ...]] = []

    def ask(*arguments: str) -> str:
        asked.append(arguments)
        return "second_door" if arguments[1] == "ls" else ""

    monkeypatch.setattr(clean, "confirm", lambda question: True)
    monkeypatch.setattr(engine, "ask", ask)

    clean.clean()

    label = "label=com.docker.compose.project=second"
    for kind in ("volume", "network"):
        assert (kind, "ls", "--quiet", "--filter", label) in asked
        assert (kind, "rm", "second_door") in asked


def test_outside_stores_are_said_to_stay(
    stack: Path, env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env.write_text(
        "COMPOSE_PROJECT_NAME=second\nBASE_IMAGE=x\nPOSTGRES_HOST=db\nS3_ENDPOINT_URL=https://s3\n"
    )
    asked: list[str] = []

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr(clean, "confirm", yes)

    clean.clean()

    stays = "Postgres at POSTGRES_HOST and S3 at S3_ENDPOINT_URL keep their data"
    assert asked == [f"Delete all data of second on this host? {stays}. There is no way back."]
    assert f"all data on this host is gone; {stays}; images and .env are kept" in capsys.readouterr().out


def test_force_asks_nothing(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE", "1")
    monkeypatch.setattr(clean, "confirm", lambda question: pytest.fail("asked"))

    clean.clean()

    assert len(removals(stack)) == 1


def test_without_env_there_is_nothing_to_clean(stack: Path, env: Path) -> None:
    env.unlink()

    with pytest.raises(Failure, match=r"There is no \.env yet"):
        clean.clean()

    assert removals(stack) == []
