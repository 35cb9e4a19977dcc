"""What of .env reaches the build as a secret, and in which files."""

import json
from pathlib import Path

import pytest

from scripts import package_index
from scripts.console import ROOT, Failure
from tests import compose_files


@pytest.fixture
def folder(tmp_path: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    env.write_text("COMPOSE_PROJECT_NAME=second\n")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(package_index, "BUILD_FOLDER", tmp_path / "build")
    return tmp_path / "build/package-index"


def test_addresses_and_passwords_of_indexes_are_written_for_their_owner_alone(
    folder: Path, env: Path
) -> None:
    env.write_text(
        "COMPOSE_PROJECT_NAME=second\nPIP_EXTRA_INDEX_URL=https://me:hush@index.example/simple\n"
        "UV_INDEX_PRIVATE_PASSWORD=hush\nPOSTGRES_PASSWORD=other\nUV_CACHE_DIR=/x\n"
    )

    package_index.write()

    assert json.loads((folder / "second.json").read_text()) == {
        "PIP_EXTRA_INDEX_URL": "https://me:hush@index.example/simple",
        "UV_INDEX_PRIVATE_PASSWORD": "hush",
    }
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_users_netrc_is_handed_on(
    folder: Path, env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine git.example login me password hush\n")
    env.write_text("COMPOSE_PROJECT_NAME=second\nNETRC=~/.netrc\n")

    package_index.write()
    assert (folder / "second.netrc").read_text() == "machine git.example login me password hush\n"

    env.write_text("COMPOSE_PROJECT_NAME=second\n")
    package_index.write()
    assert (folder / "second.netrc").read_text() == ""


def test_a_netrc_that_is_not_there_is_refused_with_the_cure(folder: Path, env: Path) -> None:
    env.write_text("NETRC=/nowhere/netrc\n")

    with pytest.raises(
        Failure, match=r"NETRC=/nowhere/netrc can't be read.*machine packages\.example\.com login"
    ):
        package_index.write()


def test_compose_hands_these_files_to_the_build_alone(folder: Path) -> None:
    text = compose_files.texts()

    assert "file: .build/package-index/${COMPOSE_PROJECT_NAME}.json" in text
    assert "file: .build/package-index/${COMPOSE_PROJECT_NAME}.netrc" in text
    assert text.count("package_index") == 2 + text.count("scripts/package_index.py")
    dockerfile = (ROOT / "docker/dagster/Dockerfile").read_text()
    assert "type=secret,id=package_index" in dockerfile
    assert "PIP_INDEX_URL" not in dockerfile, "an argument would be in the image's history"
