"""DATA_DIR: what it may be, whose it becomes, and what is said where user code could not write there."""

from pathlib import Path

import pytest

from scripts import clean, data_folder, engine
from scripts.console import Failure
from tests.unit.machines import FakeDocker, calls


@pytest.fixture
def docker(programs: Path, env: Path) -> Path:
    """An engine that does what it is told, and an .env."""
    FakeDocker().install(programs)
    env.write_text("BASE_IMAGE=base\n")
    return programs


def settings(env: Path, **values: object) -> None:
    env.write_text("BASE_IMAGE=base\n" + "".join(f"{name}={value}\n" for name, value in values.items()))


def cure() -> str:
    (finding,) = data_folder.findings()
    return finding.cure


def refused_by_probe(programs: Path, words: str) -> None:
    """Let the container that tries to write fail."""
    client = programs / "docker"
    probe = f'case "$*" in *mktemp*) echo {words} >&2; exit 1 ;; esac\n'
    client.write_text(client.read_text().replace("case ", f"{probe}case ", 1))


def test_without_it_nothing_is_made_and_a_volume_is_used(docker: Path) -> None:
    data_folder.ensure()

    assert cure() == ""
    assert not [call for call in calls(docker) if call.startswith("run")]


def test_a_folder_that_is_not_there_is_made_and_given_to_user_code(
    docker: Path, env: Path, tmp_path: Path
) -> None:
    settings(env, DATA_DIR=tmp_path / "new/data")

    assert cure() == ""
    data_folder.ensure()

    assert (tmp_path / "new/data").is_dir()
    given, tried = [call for call in calls(docker) if call.startswith("run")]
    assert "chown 10000:" in given
    assert f"--volume {tmp_path}/new/data:/data:z" in given
    assert "--user 10000:10000" in tried


def test_a_folder_with_files_keeps_its_owner(docker: Path, env: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").touch()
    settings(env, DATA_DIR=tmp_path / "theirs")

    data_folder.ensure()

    assert not [call for call in calls(docker) if "chown" in call]


def test_one_that_user_code_can_not_write_to_is_refused_with_the_cure(
    docker: Path, env: Path, tmp_path: Path
) -> None:
    settings(env, DATA_DIR=tmp_path / "data")
    refused_by_probe(docker, "Permission denied")

    with pytest.raises(
        Failure, match=r"(?s)can't use DATA_DIR=.*Permission denied.*sudo chown -R 10000:10000.*exFAT"
    ):
        data_folder.ensure()


def test_a_file_is_no_folder(docker: Path, env: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings(env, DATA_DIR=tmp_path / "file")

    with pytest.raises(Failure, match="is no folder"):
        data_folder.ensure()


def test_one_that_can_not_be_made_is_named_with_the_cure(docker: Path, env: Path) -> None:
    settings(env, DATA_DIR="/proc/none/data")

    with pytest.raises(Failure, match=r"can't be made by this user .*sudo install -d -o 10000"):
        data_folder.ensure()


@pytest.mark.parametrize("text", ["data", "./data", "~/data", "/a:/b", "/srv/../etc"])
def test_what_is_no_whole_path_is_refused(docker: Path, env: Path, text: str) -> None:
    settings(env, DATA_DIR=text)

    assert "must be a whole path" in cure()


@pytest.mark.parametrize("text", ["/", "/etc", "/home", "/usr/", str(Path.home())])
def test_folders_of_the_system_are_refused(docker: Path, env: Path, text: str) -> None:
    settings(env, DATA_DIR=text)

    assert "never given to containers" in cure()


@pytest.mark.parametrize(
    ("option", "reason"),
    [("name=rootless", "a rootless engine"), ("name=userns", "an engine that maps users")],
)
def test_engines_on_which_owners_are_others_are_refused(
    docker: Path, env: Path, monkeypatch: pytest.MonkeyPatch, option: str, reason: str
) -> None:
    monkeypatch.setattr(engine, "info", lambda: {"SecurityOptions": ["name=seccomp,profile=builtin", option]})

    # A volume works there
    assert cure() == ""
    settings(env, DATA_DIR="/srv/data")
    assert reason in cure()


def test_a_folder_of_the_project_that_is_none_is_refused(docker: Path, env: Path) -> None:
    settings(env, DATA_PATHS="/output")

    assert "below the project's root" in cure()


def test_clean_leaves_a_folder_of_the_host_and_says_so(
    docker: Path,
    env: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings(env, DATA_DIR=tmp_path / "data", COMPOSE_PROJECT_NAME="second")
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FORCE", "1")

    clean.clean()

    assert (tmp_path / "data").exists()
    assert f"{tmp_path}/data, which is this host's, are kept" in capsys.readouterr().out
