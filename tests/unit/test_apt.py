"""Reading and extending the machine's package sources, in a folder of the test."""

from pathlib import Path

import pytest

from scripts import apt
from scripts.apt import Distribution, Source
from scripts.console import Failure

DEBIAN_12 = Distribution("debian", "Debian GNU/Linux 12 (bookworm)", 12, "bookworm")


def write(folder: Path, name: str, text: str) -> None:
    apt.write(folder / name, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n',
            DEBIAN_12,
        ),
        (
            'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n',
            Distribution("debian", "Debian GNU/Linux 13 (trixie)", 13, "trixie"),
        ),
        (
            'PRETTY_NAME="Debian GNU/Linux forky/sid"\nVERSION_CODENAME=forky\nID=debian\n',
            Distribution("debian", "Debian GNU/Linux forky/sid", 0, "forky"),
        ),
        (
            'PRETTY_NAME="Ubuntu 24.04.2 LTS"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n',
            Distribution("ubuntu", "Ubuntu 24.04.2 LTS", 24, "noble"),
        ),
        ("NAME='Alpine Linux'\nPRETTY_NAME='Alpine'\nID=alpine\nVERSION_ID=3.20.0\n", Distribution("alpine", "Alpine", 3, "")),
    ],
)  # fmt: skip
def test_a_distribution_is_recognized(tmp_path: Path, text: str, expected: Distribution) -> None:
    file = tmp_path / "os-release"
    file.write_text(text)

    assert apt.distribution(file) == expected


def test_a_system_that_does_not_say_what_it_is_is_unknown(tmp_path: Path) -> None:
    assert apt.distribution(tmp_path / "none").id == "unknown"


def test_one_line_sources_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources.list",
        "# deb http://commented.example/debian bookworm main\n"
        "deb http://a.example/debian/ bookworm main contrib\n"
        "deb-src http://a.example/debian bookworm main\n"
        "  deb [arch=amd64 signed-by=/x.gpg] https://b.example/debian bookworm-updates main\n",
    )
    write(tmp_path, "sources.list.d/c.list", "deb https://c.example/apt stable main\n")
    write(tmp_path, "sources.list.d/d.list.disabled", "deb https://d.example/apt stable main\n")

    assert apt.sources(tmp_path) == [
        Source("http://a.example/debian", "bookworm"),
        Source("https://b.example/debian", "bookworm-updates"),
        Source("https://c.example/apt", "stable"),
    ]


def test_deb822_sources_are_read(tmp_path: Path) -> None:
    # Given stanzas with several addresses and suites, continued lines, a comment inside, a key inline,
    # one that is off and one of sources only
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        "Types: deb deb-src\n# a comment\nURIs: http://a.example/debian/ http://b.example/debian\n"
        "Suites: bookworm\n bookworm-updates\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n Suites: fake\n -----END PGP PUBLIC KEY BLOCK-----\n"
        "\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nEnabled: No\n"
        "\n\nTypes: deb-src\nURIs: http://src.example/debian\nSuites: bookworm\n"
        "\ntypes: deb\nuris: http://c.example/security\nsuites: bookworm-security\n",
    )

    assert apt.sources(tmp_path) == [
        Source("http://a.example/debian", "bookworm"),
        Source("http://a.example/debian", "bookworm-updates"),
        Source("http://b.example/debian", "bookworm"),
        Source("http://b.example/debian", "bookworm-updates"),
        Source("http://c.example/security", "bookworm-security"),
    ]


def test_a_file_of_mirrors_as_in_debians_cloud_images_gives_its_first(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors" / "debian.list"
    apt.write(mirrors, "https://first.example/debian\nhttps://second.example/debian\n")
    write(
        tmp_path,
        "sources.list.d/debian.sources",
        f"Types: deb\nURIs: mirror+file://{mirrors}\nSuites: bookworm\n",
    )

    assert apt.sources(tmp_path) == [Source("https://first.example/debian", "bookworm")]


def test_a_machine_without_sources_has_none(tmp_path: Path) -> None:
    assert apt.sources(tmp_path) == []


@pytest.fixture
def debian_12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of a Debian 12 with its own mirrors."""
    folder = tmp_path / "apt"
    write(
        folder,
        "sources.list",
        "deb http://a.example/debian bookworm main\ndeb http://a.example/security bookworm-security main\n",
    )
    monkeypatch.setattr(apt, "APT_FOLDER", folder)
    monkeypatch.setattr(apt.sources, "__defaults__", (folder,))
    monkeypatch.setattr(apt, "distribution", lambda: DEBIAN_12)
    return folder


@pytest.mark.usefixtures("debian_12")
def test_the_mirrors_are_the_machines_own() -> None:
    assert apt.mirror() == "http://a.example/debian"
    assert apt.mirror("-security") == "http://a.example/security"
    assert apt.mirror("-updates") is None


def test_a_pinned_suite_comes_from_the_machines_mirror_and_upgrades_nothing(debian_12: Path) -> None:
    # When trixie is added to a Debian 12
    apt.pin_suite("trixie")

    # Then it comes from the same mirror, and its priority is below what is installed (100) and released (500)
    assert Source("http://a.example/debian", "trixie") in apt.sources()
    source = (debian_12 / "sources.list.d/dagster-stack-trixie.sources").read_text()
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in source
    pin = (debian_12 / "preferences.d/dagster-stack-trixie").read_text()
    assert "Package: *\nPin: release n=trixie\nPin-Priority: 50\n" in pin


def test_a_suite_that_is_there_already_is_left_alone(debian_12: Path) -> None:
    apt.pin_suite("trixie")
    before = {file: file.stat().st_mtime_ns for file in debian_12.rglob("*") if file.is_file()}

    apt.pin_suite("trixie")

    assert {file: file.stat().st_mtime_ns for file in debian_12.rglob("*") if file.is_file()} == before


def test_without_a_mirror_nothing_is_pinned_and_the_way_out_is_named(debian_12: Path) -> None:
    (debian_12 / "sources.list").write_text("deb https://vendor.example/apt stable main\n")

    with pytest.raises(
        Failure, match=r"name no mirror of Debian GNU/Linux 12.*Install Docker Engine 25 or later"
    ):
        apt.pin_suite("trixie")

    assert not (debian_12 / "preferences.d").exists()


APT_GET = """#!/bin/bash
# As apt-get: `update` ends with 100 when one archive has no Release file, `install` goes on with the rest.
echo "$*" >> {calls}
[ "$1" != update ] || {{ echo "E: The repository 'https://gone.example stable Release' does not have a Release file."; exit 100; }}
"""


def test_a_broken_third_party_archive_does_not_stop_an_install(
    programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given an apt-get whose update fails
    (programs / "apt-get").write_text(APT_GET.format(calls=tmp_path / "calls"))
    (programs / "apt-get").chmod(0o755)

    # When something is installed
    apt.install("Installing tree", ["tree"])

    # Then the failed update is said, the install ran, and may not remove anything
    assert "some package lists could not be read" in capsys.readouterr().out
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update == "update"
    assert install == "install --yes --no-remove --no-install-recommends tree"


def test_the_lists_are_read_once(programs: Path, tmp_path: Path) -> None:
    (programs / "apt-get").write_text(APT_GET.format(calls=tmp_path / "calls"))
    (programs / "apt-get").chmod(0o755)

    apt.install("Installing tree", ["tree"])
    apt.install("Installing jq", ["jq"])

    assert (tmp_path / "calls").read_text().splitlines().count("update") == 1


@pytest.mark.usefixtures("programs")
def test_a_program_that_only_a_person_can_install_is_named_with_the_command() -> None:
    with pytest.raises(Failure, match=r"chromium is missing.*sudo apt-get install chromium"):
        apt.ensure("Installing Chromium", "chromium", ["chromium"])
