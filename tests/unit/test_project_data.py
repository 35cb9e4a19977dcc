"""The folder for data: linked in the image, filled with what the project brings, and never at the cost of user code's files."""

import json
from pathlib import Path

import pytest

from dagster_stack.errors import ProvisionError, SettingsError
from dagster_stack.project import data
from dagster_stack.project.data import lay, lay_absent, link, paths
from dagster_stack.services.provision import provision_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with files in two folders."""
    root = tmp_path / "project"
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/in.csv").write_text("1")
    (root / "output").mkdir()
    (root / "output/old.txt").write_text("old")
    return root


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    volume.mkdir()
    return volume


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    return tmp_path / "brought"


def test_data_is_the_volume_and_other_folders_are_in_it(root: Path, volume: Path, brought: Path) -> None:
    link(root, "output, reports/html", volume, brought)
    lay("output, reports/html", volume, brought)

    # Then what the project brings is where it was, and what is written there is on the volume
    assert (root / "data/raw/in.csv").read_text() == "1"
    assert (root / "output/old.txt").read_text() == "old"
    (root / "data/new").write_text("x")
    (root / "output/new").write_text("y")
    (root / "reports/html/new").write_text("z")
    assert (volume / "new").read_text() == "x"
    assert (volume / "output/new").read_text() == "y"
    assert (volume / "reports/html/new").read_text() == "z"


def test_a_project_without_the_folder_gets_it(tmp_path: Path, volume: Path, brought: Path) -> None:
    link(tmp_path, "", volume, brought)
    lay("", volume, brought)

    (tmp_path / "data/x").write_text("x")

    assert (volume / "x").read_text() == "x"


def test_files_of_user_code_are_never_replaced(root: Path, volume: Path, brought: Path) -> None:
    # Given a file of the project's name that is there already, and one that user code has changed
    (volume / "raw").mkdir()
    (volume / "raw/in.csv").write_text("theirs")
    (root / "data/b.csv").write_text("brought")
    link(root, "", volume, brought)
    lay("", volume, brought)
    (volume / "b.csv").write_text("changed")

    # When the project brings others
    (brought / "b.csv").write_text("brought anew")
    (brought / "raw/in.csv").write_text("brought anew")
    lay("", volume, brought)

    # Then both stay
    assert (volume / "raw/in.csv").read_text() == "theirs"
    assert (volume / "b.csv").read_text() == "changed"
    # And go on to stay
    lay("", volume, brought)
    assert (volume / "b.csv").read_text() == "changed"


def test_a_file_that_nobody_has_touched_is_renewed(root: Path, volume: Path, brought: Path) -> None:
    link(root, "", volume, brought)
    lay("", volume, brought)

    (brought / "raw/in.csv").write_text("2")
    lay("", volume, brought)
    assert (volume / "raw/in.csv").read_text() == "2"

    # And comes again when it is gone
    (volume / "raw/in.csv").unlink()
    lay("", volume, brought)
    assert (volume / "raw/in.csv").read_text() == "2"
    assert set(json.loads((volume / data.RECORD).read_text())) == {"raw/in.csv"}


def test_user_code_may_change_what_came_from_a_checkout_without_the_right_to(
    root: Path, volume: Path, brought: Path
) -> None:
    (root / "data/raw/in.csv").chmod(0o444)
    link(root, "", volume, brought)

    lay("", volume, brought)

    assert (volume / "raw/in.csv").stat().st_mode & 0o200


@pytest.mark.parametrize("setting", ["/abs", "../out", "a/../../b", "."])
def test_what_is_no_folder_of_the_project_is_refused(setting: str) -> None:
    with pytest.raises(SettingsError, match="below the project's root"):
        paths(setting)


def test_a_folder_within_another_needs_no_link_of_its_own() -> None:
    assert paths("data/raw,output,output/html, ,data") == ["data", "output"]


def test_a_folder_with_code_is_none_for_data(root: Path, volume: Path, brought: Path) -> None:
    (root / "output/job.py").touch()

    with pytest.raises(SettingsError, match=r"it holds code \(output/job.py\)"):
        link(root, "output", volume, brought)


def test_a_package_called_data_stays_what_it_is(root: Path, volume: Path, brought: Path) -> None:
    (root / "data/__init__.py").touch()

    link(root, "output", volume, brought)

    assert not (root / "data").is_symlink()
    assert (root / "output").is_symlink()


def test_code_that_is_tried_beside_older_code_finds_new_files_and_leaves_the_others(
    root: Path, volume: Path, brought: Path
) -> None:
    link(root, "", volume, brought)
    (brought / "new.csv").write_text("new")
    (brought / "raw/in.csv").write_text("2")

    lay_absent("", volume, brought)
    assert (volume / "new.csv").read_text() == "new"
    assert (volume / "raw/in.csv").read_text() == "1"

    # And when it is deployed, all is as it brings it
    lay("", volume, brought)
    assert (volume / "raw/in.csv").read_text() == "2"


def test_a_file_in_the_place_of_the_folder_is_named(root: Path, volume: Path, brought: Path) -> None:
    (root / "out").touch()

    with pytest.raises(SettingsError, match="out of the project is a file"):
        link(root, "out", volume, brought)


def test_a_volume_that_can_not_be_written_to_is_told_with_the_cure(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/opt/data/x")

    monkeypatch.setattr(data, "lay", refuse)

    with pytest.raises(ProvisionError, match=r"Permission denied: '/opt/data/x'.*chown"):
        provision_files({data.VARIABLE: str(volume)})


def test_outside_of_containers_there_is_no_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "lay", lambda *_: pytest.fail("laid"))

    provision_files({})
