"""Engines other than the usual one: what works, and what is refused or said before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from scripts import engine, preflight
from scripts.console import ROOT, Failure
from scripts.preflight import Finding

#: `docker info` of Debian's engine, as far as it is looked at.
USUAL = {
    "OSType": "linux", "OperatingSystem": "Debian GNU/Linux 13 (trixie)", "DockerRootDir": "/var/lib/docker",
    "SecurityOptions": ["name=seccomp,profile=builtin"], "MemoryLimit": True, "PidsLimit": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text("")
    monkeypatch.setattr(engine, "is_podman", lambda: False)
    monkeypatch.setattr(engine, "endpoint", lambda: "unix:///var/run/docker.sock")


def look(monkeypatch: pytest.MonkeyPatch, **differs: Any) -> list[Finding]:
    monkeypatch.setattr(engine, "info", lambda: USUAL | differs)
    return preflight.engine_kind()


def refusal(findings: list[Finding]) -> str:
    with pytest.raises(Failure) as failure:
        preflight.report(findings)
    return str(failure.value)


def test_the_usual_engine_is_no_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = look(monkeypatch)

    assert not finding.cure


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["name=seccomp,profile=builtin", "name=userns"], "user namespaces"),
        (["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"], "rootless"),
        (["name=selinux"], "SELinux"),
    ],
)
def test_engines_on_which_the_stack_works_are_named(
    options: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = look(monkeypatch, SecurityOptions=options)

    assert named in finding.found
    assert not finding.cure


def test_podman_behind_dockers_socket_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version number is far below Docker's: "too old" would be a riddle."""
    monkeypatch.setattr(engine, "is_podman", lambda: True)

    assert "Podman" in refusal(look(monkeypatch))


def test_windows_containers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Linux containers" in refusal(look(monkeypatch, OSType="windows"))


@pytest.mark.parametrize(("home", "seen"), [(ROOT.parent, True), (Path("/home/nobody"), False)])
def test_a_snap_is_refused_where_it_cant_see_the_checkout(
    home: Path, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))

    findings = look(monkeypatch, DockerRootDir="/var/snap/docker/common/var-lib-docker")

    if seen:
        assert not [finding.cure for finding in findings if finding.cure]
    else:
        assert str(ROOT) in refusal(findings)


def test_a_snap_sees_no_folder_that_begins_with_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert preflight.snap_sees(tmp_path / "code" / ".hidden")
    assert not preflight.snap_sees(tmp_path / ".hidden" / "code")


def test_an_engine_on_another_machine_has_no_dashboards_of_this_one(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "endpoint", lambda: "ssh://far")
    preflight.report(look(monkeypatch))

    env.write_text("COMPOSE_PROFILES=postgres,grafana\n")

    assert "COMPOSE_PROFILES" in refusal(look(monkeypatch))


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"MemoryLimit": False, "PidsLimit": False}, "memory and the number of processes"),
        ({"PidsLimit": False}, "limit the number of processes"),
        ({"OperatingSystem": "Docker Desktop"}, "not tried on Docker Desktop"),
    ],
)
def test_what_is_missing_or_was_not_tried_is_said_and_left_to_the_user(
    differs: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preflight.report(look(monkeypatch, **differs))

    assert said in capsys.readouterr().out


def test_an_engine_that_says_nothing_of_itself_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "info", dict)

    preflight.report(preflight.engine_kind())


@pytest.mark.parametrize("named", ["", "compose.yaml", f"{ROOT}/compose.yaml:tests/faults/compose.yaml"])
def test_compose_files_with_the_stacks_own_are_no_complaint(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOSE_FILE", named)

    preflight.report(preflight.compose_files())


def test_a_compose_file_of_another_project_in_the_shell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_FILE", "/elsewhere/compose.yaml")

    assert "unset it" in refusal(preflight.compose_files())
