"""The base of every image: named, here already, pulled, or made on this machine."""

import os
from pathlib import Path

import pytest

from scripts import apt, base_image, env_file
from scripts.apt import Distribution
from scripts.base_image import LOCAL_IMAGE, PUBLIC_IMAGE
from scripts.console import Failure
from tests.unit.machines import FakeDocker, Machine, calls

DEBIAN_12 = Distribution("debian", "Debian GNU/Linux 12 (bookworm)", 12, "bookworm")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes that the base would have been made here."""
    seen: list[str] = []
    monkeypatch.setattr(base_image, "make", lambda: seen.append("made"))
    return seen


def test_with_a_registry_the_public_image_is_pulled_and_remembered(
    programs: Path, env: Path, made: list[str]
) -> None:
    env.write_text("BASE_IMAGE=\n")
    FakeDocker(pulls=True).install(programs)

    base_image.ensure()

    assert env_file.read(env)["BASE_IMAGE"] == PUBLIC_IMAGE
    assert made == []


def test_without_a_registry_the_base_is_made_here_and_remembered(
    programs: Path, env: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Given no registry
    env.write_text("BASE_IMAGE=\n")
    FakeDocker(pulls=False).install(programs)

    # When a base is chosen
    base_image.ensure()

    # Then it is the local one, and why is said
    assert made == ["made"]
    assert env_file.read(env)["BASE_IMAGE"] == LOCAL_IMAGE
    assert f"{PUBLIC_IMAGE} can't be pulled (no registry?)" in capsys.readouterr().out


@pytest.mark.parametrize("image", [PUBLIC_IMAGE, LOCAL_IMAGE, "mirror.example/debian:trixie"])
def test_an_image_that_is_here_is_not_asked_of_any_registry(
    programs: Path, env: Path, made: list[str], image: str
) -> None:
    env.write_text(f"BASE_IMAGE={image}\n")
    FakeDocker(images=(image,)).install(programs)

    base_image.ensure()

    assert not any(call.startswith("pull") for call in calls(programs))
    assert made == []
    assert env.read_text() == f"BASE_IMAGE={image}\n"


def test_a_base_made_earlier_is_taken_before_a_registry_is_asked(
    programs: Path, env: Path, made: list[str]
) -> None:
    env.write_text("")
    FakeDocker(images=(LOCAL_IMAGE,), pulls=True).install(programs)

    base_image.ensure()

    assert env_file.read(env)["BASE_IMAGE"] == LOCAL_IMAGE
    assert made == []
    assert not any(call.startswith("pull") for call in calls(programs))


def test_a_local_base_that_was_removed_is_made_again(programs: Path, env: Path, made: list[str]) -> None:
    env.write_text(f"BASE_IMAGE={LOCAL_IMAGE}\n")
    FakeDocker().install(programs)

    base_image.ensure()

    assert made == ["made"]


def test_an_image_of_the_users_choice_that_cant_be_pulled_is_not_replaced_by_another(
    programs: Path, env: Path, made: list[str]
) -> None:
    env.write_text("BASE_IMAGE=mirror.example/debian:trixie\n")
    FakeDocker().install(programs)

    with pytest.raises(
        Failure, match=r"mirror.example/debian:trixie .* can't be pulled.*or delete the line BASE_IMAGE"
    ):
        base_image.ensure()

    assert made == []


def test_without_registry_and_root_the_two_ways_on_are_named(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("")
    FakeDocker().install(programs)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(Failure, match=r"run `sudo make up`, or set BASE_IMAGE in .env"):
        base_image.ensure()


def test_the_base_is_made_from_the_machines_own_mirrors(
    machine: Machine, programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given a Debian 12 with mirrors of its own, and an mmdebstrap that tells what it was asked for
    FakeDocker().install(programs)
    (programs / "apt-get").touch(mode=0o755)
    (programs / "bash").symlink_to("/bin/bash")
    (programs / "mmdebstrap").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    (programs / "mmdebstrap").chmod(0o755)
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(apt, "KEYRING", str(keyring))
    monkeypatch.setattr(apt, "distribution", lambda: DEBIAN_12)
    monkeypatch.setattr(apt, "sources", lambda: [
        apt.Source("http://a.example/debian", "bookworm"),
        apt.Source("http://a.example/debian-security", "bookworm-security"),
    ])  # fmt: skip
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    # When the base is made
    base_image.make()

    # Then it is trixie from those mirrors, and goes into the engine under the local name
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--variant=minbase",
        "trixie",
        "-",
        "deb http://a.example/debian trixie main",
        "deb http://a.example/debian-security trixie-security main",
    ]
    assert calls(programs)[-1] == f"import - {LOCAL_IMAGE}"


def test_an_mmdebstrap_that_fails_is_a_failure_though_the_import_ends_well(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeDocker().install(programs)
    (programs / "apt-get").touch(mode=0o755)
    (programs / "bash").symlink_to("/bin/bash")
    (programs / "mmdebstrap").write_text("#!/bin/bash\necho 'E: apt-get update failed' >&2\nexit 1\n")
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setattr(apt, "KEYRING", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    with pytest.raises(Failure, match="E: apt-get update failed"):
        base_image.make()


def test_ubuntu_lets_mmdebstrap_choose_debians_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "distribution", lambda: Distribution("ubuntu", "Ubuntu 24.04", 24, "noble"))

    assert base_image.archives() == []


@pytest.mark.parametrize(("image", "how"), [(LOCAL_IMAGE, ["made"]), ("mirror.example/debian:trixie", [])])
def test_a_base_is_renewed_in_the_way_in_which_it_was_had(
    programs: Path, env: Path, made: list[str], image: str, how: list[str]
) -> None:
    env.write_text(f"BASE_IMAGE={image}\n")
    FakeDocker(images=(image,), pulls=True).install(programs)

    base_image.renew()

    assert made == how
    assert any(call == f"pull --quiet {image}" for call in calls(programs)) != bool(how)


def test_a_base_that_cant_be_pulled_again_stays(
    programs: Path, env: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    env.write_text(f"BASE_IMAGE={PUBLIC_IMAGE}\n")
    FakeDocker(images=(PUBLIC_IMAGE,)).install(programs)

    base_image.renew()

    assert made == []
    assert "can't be pulled again" in capsys.readouterr().out
