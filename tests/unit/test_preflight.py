"""What is said of a machine before anything is started: required, found, and the cure."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import engine, env_file, images, preflight
from scripts.console import Failure
from scripts.preflight import Finding
from tests.unit.machines import FakeDocker, Machine

FREE = "DAGIT_PORT={0}\nRABBITMQ_PORT={1}\nMINIO_PORT={2}\nMINIO_CONSOLE_PORT={3}\n"


@pytest.fixture
def ports(taken: int) -> list[int]:
    """Four free ports, none of which is taken meanwhile."""
    probes = [socket.socket() for _ in range(4)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def cures(findings: list[Finding]) -> list[str]:
    return [finding.cure for finding in findings if finding.cure]


def test_free_ports_are_no_complaint(programs: Path, env: Path, ports: list[int]) -> None:
    FakeDocker().install(programs)
    env.write_text(FREE.format(*ports))

    findings = preflight.ports()

    assert [finding.found for finding in findings] == ["free"] * 4
    assert not cures(findings)


@pytest.mark.parametrize("variable", list(preflight.PORT_VARIABLES))
def test_a_port_in_use_is_named_with_the_variable_that_moves_it(
    programs: Path, env: Path, ports: list[int], taken: int, variable: str
) -> None:
    # Given another program on the port that a variable names
    FakeDocker().install(programs)
    env.write_text(FREE.format(*ports))
    env_file.set_value(variable, str(taken))

    # When the ports are looked at
    with pytest.raises(Failure) as failure:
        preflight.report(preflight.ports())

    # Then exactly that port and that variable are named
    assert str(failure.value).splitlines()[1:] == [f"    port {taken}: set {variable} in .env to a free port"]


def test_a_port_in_use_stops_make_up_before_anything_is_built(
    machine: Machine, ports: list[int], taken: int
) -> None:
    # Given a machine that has all but a free port for Dagit
    FakeDocker(pulls=True).install(machine.programs)
    machine.env.write_text(FREE.format(taken, *ports[1:]))

    # When the stack is started
    result = machine.script("up", REQUIRED_DISK_GB="0")

    # Then it ends with that port, and no base image was pulled
    assert result.returncode == 1
    assert f"port {taken}: required free for Dagit, found taken by another program" in result.stdout
    assert "This machine is not ready, and nothing was started" in result.stderr
    assert f"port {taken}: set DAGIT_PORT in .env to a free port" in result.stderr
    assert "pull" not in (machine.programs / "calls").read_text()


def test_a_port_that_this_very_stack_holds_is_fine(
    programs: Path, env: Path, ports: list[int], taken: int
) -> None:
    # Given that the listener is a container of this stack, alone or in a range of neighbours
    env.write_text(FREE.format(taken, *ports[1:]))

    for published in (f"127.0.0.1:{taken}->3000/tcp", f"127.0.0.1:{taken - 1}-{taken + 1}->1-3/tcp, 9/tcp"):
        FakeDocker(ports=published).install(programs)
        findings = preflight.ports()

        assert findings[0].found == "this stack's own"
        assert not cures(findings[:1])


def test_two_variables_with_the_same_port_are_both_named(programs: Path, env: Path, ports: list[int]) -> None:
    FakeDocker().install(programs)
    env.write_text(FREE.format(ports[0], ports[1], ports[0], ports[3]))

    assert cures(preflight.ports()) == ["DAGIT_PORT and MINIO_PORT are the same: change one in .env"]


@pytest.mark.parametrize("text", ["http", "99999", "-1"])
def test_a_port_that_is_none_is_named(programs: Path, env: Path, text: str) -> None:
    FakeDocker().install(programs)
    env.write_text(f"DAGIT_PORT={text}\n")

    with pytest.raises(Failure, match=rf"DAGIT_PORT={text} in \.env is not a whole number from 0 to 65535"):
        preflight.ports()


def test_an_address_that_is_not_this_machines_is_not_taken_for_a_port_in_use(
    programs: Path, env: Path, ports: list[int]
) -> None:
    FakeDocker().install(programs)
    env.write_text(FREE.format(*ports) + "BIND_ADDRESS=203.0.113.7\n")

    assert (
        cures(preflight.ports())[0]
        == "BIND_ADDRESS=203.0.113.7 in .env is no address of this machine: correct it"
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "[::1]"])
def test_every_form_of_an_own_address_is_understood(address: str, ports: list[int]) -> None:
    if ":" in address and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")

    assert preflight.bind_problem(address, ports[0]) is None


def test_a_public_name_that_is_none_stops_make_up(env: Path) -> None:
    env.write_text("PUBLIC_HOST=*.example.com\n")

    with pytest.raises(
        Failure, match=r"names of Dagit: PUBLIC_HOST must hold names such as .* Change it in \.env"
    ):
        preflight.report(preflight.names())


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "[::]"])
def test_a_dagit_that_listens_everywhere_must_be_told_its_name(env: Path, address: str) -> None:
    # Given pages that are open to other machines
    env.write_text(f"BIND_ADDRESS={address}\n")

    # Then it is said that a name is needed there, and nothing is stopped
    (finding,) = preflight.names()
    assert "set PUBLIC_HOST in .env to the name or address by which other machines reach it" in finding.cure
    assert not finding.fatal

    # And with one all is well
    env_file.set_value("PUBLIC_HOST", "https://dagit.example.com")
    (finding,) = preflight.names()
    assert (finding.found, finding.cure) == ("dagit.example.com", "")


@pytest.mark.parametrize("address", ["", "127.0.0.1", "192.0.2.7", "::1"])
def test_a_concrete_address_needs_no_name(env: Path, address: str) -> None:
    env.write_text(f"BIND_ADDRESS={address}\n")

    assert not cures(preflight.names())


@pytest.mark.parametrize("variable", ["DAGIT_PORT", "MINIO_PORT"])
def test_a_port_of_the_doors_in_use_is_named(
    programs: Path, env: Path, ports: list[int], taken: int, variable: str
) -> None:
    FakeDocker().install(programs)
    for address in ("127.0.0.1", "0.0.0.0"):
        env.write_text(FREE.format(*ports) + f"LOGIN=on\nBIND_ADDRESS={address}\n")
        env_file.set_value(variable, str(taken))

        assert cures(preflight.ports()) == [f"set {variable} in .env to a free port"]


def test_ports_that_a_login_closes_are_not_looked_at(
    programs: Path, env: Path, ports: list[int], taken: int
) -> None:
    FakeDocker().install(programs)
    env.write_text(FREE.format(*ports) + f"LOGIN=on\nCOMPOSE_PROFILES=monitoring\nFLOWER_PORT={taken}\n")

    assert not cures(preflight.ports())


@pytest.mark.parametrize("name", ["team", "0ab", "data_team-2", "a__b--c", "a" * 100])
def test_a_stack_is_called_as_its_image_can_be(env: Path, name: str) -> None:
    env.write_text(f"COMPOSE_PROJECT_NAME={name}\n")

    assert not cures(preflight.stack_name())


@pytest.mark.parametrize("name", ["team_", "-team", "a___b", "a-_b", "Team", "a.b", "jörg", "a b", "a" * 101])
def test_a_stacks_name_that_no_image_can_have_is_named_before_anything_is_built(env: Path, name: str) -> None:
    env.write_text(f"COMPOSE_PROJECT_NAME={name}\n")

    with pytest.raises(Failure, match=r"COMPOSE_PROJECT_NAME=.* can't be the name of an image"):
        preflight.report(preflight.stack_name())


def test_ports_of_outside_stores_are_not_looked_at(programs: Path, env: Path, ports: list[int]) -> None:
    FakeDocker().install(programs)
    env.write_text(FREE.format(*ports) + "RABBITMQ_HOST=mq.example\nS3_ENDPOINT_URL=https://s3.example\n")

    assert [finding.subject for finding in preflight.ports()] == [f"port {ports[0]}"]


def test_ports_of_an_engine_elsewhere_are_not_looked_for_here(
    programs: Path, env: Path, ports: list[int], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDocker().install(programs)
    env.write_text(FREE.format(taken, *ports[1:]))
    monkeypatch.setenv("DOCKER_HOST", "ssh://builder.example")

    assert not cures(preflight.ports())
    assert preflight.disk() == []


def test_too_little_disk_stops_make_up_and_says_how_to_make_room(machine: Machine) -> None:
    FakeDocker().install(machine.programs)

    result = machine.script("up", REQUIRED_DISK_GB="999999")

    assert result.returncode == 1
    assert "free disk: required 999999 GB, found" in result.stdout
    assert "make room in /: `docker system df`" in result.stderr
    assert not machine.env.exists()


def test_an_amount_of_disk_that_is_no_number_is_named(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDocker().install(programs)
    monkeypatch.setenv("REQUIRED_DISK_GB", "lots")

    with pytest.raises(Failure, match="REQUIRED_DISK_GB=lots in the environment is not a whole number"):
        preflight.disk()


@pytest.mark.parametrize(
    ("built", "required"), [(True, preflight.DISK_LATER_GB), (False, preflight.DISK_FIRST_GB)]
)
def test_less_disk_is_required_once_the_images_are_built(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch, built: bool, required: int
) -> None:
    FakeDocker().install(programs)
    env.write_text("COMPOSE_PROFILES=postgres\nS3_ENDPOINT_URL=https://s3.example\n")
    monkeypatch.setattr(
        images, "built_from", lambda image: "digest" if built and image.service != "minio" else ""
    )

    assert preflight.disk()[0].required == f"{required} GB"


def test_disk_is_looked_at_where_the_engine_keeps_its_data(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a rootless engine, whose folder is the user's, and is not to be entered in part
    FakeDocker().install(programs)
    folder = tmp_path / "share" / "docker"
    monkeypatch.setattr(
        engine, "ask", lambda *arguments: str(folder) if "{{.DockerRootDir}}" in arguments else ""
    )
    asked: list[Path] = []
    real = shutil.disk_usage

    def disk_usage(path: Path):  # type: ignore[no-untyped-def]
        asked.append(path)
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)

    preflight.disk()

    assert asked == [folder, folder.parent, folder.parent.parent]


@pytest.mark.parametrize(
    ("docker", "subject"),
    [
        (FakeDocker(engine="20.10.24+dfsg1"), "Docker engine"),
        (FakeDocker(compose="2.20.0"), "Docker Compose"),
    ],
)
def test_a_version_that_is_too_old_stops_make_up_with_the_cure(
    machine: Machine, docker: FakeDocker, subject: str
) -> None:
    docker.install(machine.programs)

    result = machine.script("up", REQUIRED_DISK_GB="0")

    assert result.returncode == 1
    assert f"{subject}: required" in result.stdout
    assert f"{subject}: too old: upgrade it" in result.stderr
    assert not machine.env.exists()


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("26.1.5+dfsg1", True),
        ("25.0.0", True),
        ("28.2.2", True),
        ("24.0.9", False),
        ("20.10.24+dfsg1", False),
        ("none", False),
    ],
)
def test_versions_are_compared_as_numbers(
    version: str, enough: bool, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDocker().install(programs)
    monkeypatch.setattr(engine, "version", lambda: version)

    assert bool(preflight.versions()[0].cure) is not enough


@pytest.mark.parametrize("version", ["2.24.0", "2.26.1-4", "5.0.1", "2.39.1-desktop.1"])
def test_compose_versions_of_all_kinds_are_recent_enough(
    version: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDocker(compose=f"v{version}").install(programs)

    assert preflight.versions()[1] == Finding("Docker Compose", "2.24 or later", version)


def test_stores_with_tls_need_a_release_that_mounts_a_part_of_a_volume(
    env: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compose 2.25 leaves `subpath` out, so each store would see all keys
    FakeDocker(compose="v2.25.0").install(programs)
    monkeypatch.setattr(engine, "version", lambda: "25.0.5")
    env.write_text("INTERNAL_TLS=off\n")
    assert not [finding for finding in preflight.versions() if finding.cure]

    env.write_text("INTERNAL_TLS=on\n")

    found = preflight.versions()
    assert [finding.required for finding in found] == [
        "26.0 or later, as INTERNAL_TLS=on",
        "2.26 or later, as INTERNAL_TLS=on",
    ]
    assert all("upgrade it" in finding.cure and "INTERNAL_TLS=off" in finding.cure for finding in found)


def test_a_small_machine_is_told_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given one core and 2 GB
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(preflight, "total_memory_gb", lambda: 2.0)

    # When that is reported, then both are said with required and found, and nothing is raised
    preflight.report(preflight.machine())

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  ! cores: required 2, found 1 — all will be slow"
    assert lines[1].startswith(
        "  ! memory: required 4 GB, found 2.0 GB — containers may be killed: lower WORKERS"
    )


def test_the_memory_found_is_this_machines() -> None:
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])

    assert preflight.total_memory_gb() == pytest.approx(kilobytes * 1024 / 1e9, rel=0.01)


def test_several_problems_are_named_at_once() -> None:
    findings = [Finding("a", "1", "0", "more a"), Finding("b", "1", "1"), Finding("c", "1", "0", "more c")]

    with pytest.raises(Failure, match="a: more a\n    c: more c"):
        preflight.report(findings)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("S3_ACCESS_KEY=\n", True),
        ("S3_ACCESS_KEY=a\n", False),
        ("S3_ACCESS_KEY=\nS3_ENDPOINT_URL=https://s3.example.com\n", False),
    ],
)
def test_only_an_outside_s3_store_may_do_without_an_access_key(env: Path, text: str, refused: bool) -> None:
    env.write_text(text)

    found = preflight.keys()

    assert bool(found) == refused
    assert all(finding.fatal and "S3_ENDPOINT_URL" in finding.cure for finding in found)


def test_how_long_runs_are_kept_is_told(env: Path) -> None:
    env.write_text("KEEP_DETAILS_DAYS=7\nKEEP_RUNS_DAYS=0\n")
    (finding,) = preflight.kept()
    assert not finding.cure
    assert finding.found == "Old runs are kept for ever, how their steps were executed 7 days"


@pytest.mark.parametrize("text", ["-1", "a year", "0.5"])
def test_what_is_no_number_of_days_stops_the_start(env: Path, text: str) -> None:
    env.write_text(f"KEEP_RUNS_DAYS={text}\n")
    (finding,) = preflight.kept()
    assert finding.fatal
    assert f"KEEP_RUNS_DAYS is '{text}'" in finding.cure
    assert "0 to keep all. Change it in .env" in finding.cure
