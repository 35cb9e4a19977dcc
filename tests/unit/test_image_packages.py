"""What images hold and what is newer, old → new: from what dpkg, apt and lock files say."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts import image_packages, proxies
from scripts.console import Failure
from scripts.image_packages import DEBIAN, PROJECT, PYTHON, Change

STATUS = """\
Package: base-files
Essential: yes
Status: install ok installed
Version: 13.8+deb13u1

Package: gone
Status: deinstall ok config-files
Version: 1

Package: postgresql-17
Status: install ok installed
Description: the database
 Version: of no other
Version: 17.6-1
"""
HASH = "    --hash=sha256:" + "0" * 64
READ = f"""\
=== /var/lib/dpkg/status
{STATUS}
=== /opt/dagster/requirements/stack.lock
dagster==1.13.1 \\
{HASH}
=== /opt/dagster/requirements/project.lock
pandas==2.3.0 \\
{HASH}
"""
ASKED = """\
=== 0
=== 1
Inst libc6 [2.41-12] (2.41-12+deb13u1 Debian-Security:13/stable-security [amd64]) []
Inst libnew:amd64 (1.0 Debian:13.2/stable [amd64])
Conf libc6 (2.41-12+deb13u1 Debian-Security:13/stable-security [amd64])
"""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The client's calls; it prints `READ` for an image and `ASKED` for the archive."""
    seen: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        seen.append({"command": command, **options})
        printed = ASKED.encode() if "--interactive" in command else READ
        return subprocess.CompletedProcess(command, 0, printed, "")

    monkeypatch.setattr(image_packages, "docker", lambda: "docker")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(proxies, "recorded", lambda: {"http_proxy": "http://me:secret@proxy:1"})
    return seen


def test_an_images_packages_are_those_of_dpkg_and_of_its_locks(engine: list[dict[str, Any]]) -> None:
    assert image_packages.packages(image_packages.texts("image")) == {
        (DEBIAN, "base-files"): "13.8+deb13u1",
        (DEBIAN, "postgresql-17"): "17.6-1",
        (PYTHON, "dagster"): "1.13.1",
        (PROJECT, "pandas"): "2.3.0",
    }
    # Nothing of the image runs, nor reaches anything
    assert {"--network", "none", "--entrypoint"} <= set(engine[0]["command"])


def test_the_archive_is_asked_once_for_all_images(engine: list[dict[str, Any]], tmp_path: Path) -> None:
    newer = image_packages.newer("base", {"stack/one": STATUS, "stack/two": "other"})

    assert newer == {"stack/one": {}, "stack/two": {"libc6": "2.41-12+deb13u1", "libnew": "1.0"}}
    (call,) = engine
    with tarfile.open(fileobj=io.BytesIO(call["input"])) as tar:
        tar.extractall(tmp_path, filter="data")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"0": STATUS, "1": "other"}


def test_a_proxys_password_is_not_on_the_command_line(engine: list[dict[str, Any]]) -> None:
    image_packages.newer("base", {"one": STATUS, "two": STATUS})

    assert "http_proxy" in engine[0]["command"]
    assert "secret" not in " ".join(engine[0]["command"])
    assert engine[0]["env"]["http_proxy"] == "http://me:secret@proxy:1"


def test_an_archive_that_does_not_answer_is_said_with_its_reason_and_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = b"W: a\nE: Failed to fetch http://deb.invalid/ Temporary failure resolving 'deb.invalid'\n"
    result = subprocess.CompletedProcess([], 100, b"", said)
    monkeypatch.setattr(image_packages, "docker", lambda: "docker")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: result)
    monkeypatch.setattr(proxies, "file", lambda: tmp_path / "none")

    with pytest.raises(Failure, match=r"(?s)E: Failed to fetch.*HTTP_PROXY"):
        image_packages.newer("base", {"one": STATUS})


# --- old → new ---------------------------------------------------------------------------------------------

BEFORE = {
    "postgres": {(DEBIAN, "libc6"): "1", (DEBIAN, "postgresql-17"): "17.6-1", (DEBIAN, "old"): "1"},
    "dagster": {(DEBIAN, "libc6"): "1", (PYTHON, "dagster"): "1.13.1", (PYTHON, "boto3"): "1"},
}
AFTER = {
    "postgres": {(DEBIAN, "libc6"): "2", (DEBIAN, "postgresql-17"): "17.7-1"},
    "dagster": {
        (DEBIAN, "libc6"): "2",
        (PYTHON, "dagster"): "1.13.1",
        (PYTHON, "boto3"): "2",
        (PYTHON, "new"): "1",
    },
}


def test_what_changes_in_several_images_in_one_way_is_one_change() -> None:
    assert image_packages.changes(BEFORE, AFTER) == [
        Change(DEBIAN, "libc6", "1", "2", ("dagster", "postgres")),
        Change(DEBIAN, "old", "1", "", ("postgres",)),
        Change(DEBIAN, "postgresql-17", "17.6-1", "17.7-1", ("postgres",)),
        Change(PYTHON, "boto3", "1", "2", ("dagster",)),
        Change(PYTHON, "new", "", "1", ("dagster",)),
    ]


def test_the_table_has_the_parts_that_people_ask_for_first() -> None:
    assert image_packages.table(image_packages.changes(BEFORE, AFTER), BEFORE) == [
        "  Dagster        1.13.1, as it is",
        "  Postgres       17.6-1 → 17.7-1",
        "  Debian: libc6  1 → 2             all images",
        "  Debian: old    1 → none          postgres",
        "  Python: boto3  1 → 2",
        "  Python: new    none → 1",
    ]
