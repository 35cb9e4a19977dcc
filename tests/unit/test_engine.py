"""The Docker engine: each way in which it can be missing has its own message, with its cure."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts import apt, engine
from scripts.apt import Distribution
from scripts.console import Failure
from scripts.engine import NoEngine
from tests.unit.machines import FakeDocker, Machine, is_root
from tests.waiting import wait_until

NOBODY = 65534
DEBIAN_12 = Distribution("debian", "Debian GNU/Linux 12 (bookworm)", 12, "bookworm")
DEBIAN_13 = Distribution("debian", "Debian GNU/Linux 13 (trixie)", 13, "trixie")
DEBIAN_SID = Distribution("debian", "Debian GNU/Linux forky/sid", 0, "forky")
UBUNTU = Distribution("ubuntu", "Ubuntu 24.04.2 LTS", 24, "noble")

needs_root = pytest.mark.skipif(not is_root(), reason="only root can become another user")
needs_system_python = pytest.mark.skipif(
    subprocess.run(
        [
            "/usr/bin/env",
            "-i",
            "/bin/sh",
            "-c",
            "/usr/bin/python3 -c 'import sys; exit(sys.version_info < (3, 11))'",
        ],
        check=False,
    ).returncode
    != 0,
    reason="/usr/bin/python3 is missing or older than 3.11",
)


# --- no engine, from outside: exit code and message of `make up` and its kin -------------------------------


@pytest.mark.parametrize("script", ["up", "demo"])
def test_without_docker_and_forbidden_to_install_it_the_way_without_docker_is_named(
    machine: Machine, script: str
) -> None:
    # Given a machine without docker, where installing is forbidden
    prelude = "from scripts import dev\ndev.demo = lambda: print('EMBEDDED') or 7"

    # When it is started
    result = machine.script(script, prelude=prelude, INSTALL_DOCKER="no")

    # Then the message says what is missing, what forbids it, and what works instead
    text = result.stdout + result.stderr
    assert "There is no Docker engine on this machine. INSTALL_DOCKER=no forbids to install it." in text
    assert "`make dev` runs the same pipelines" in text
    assert "Traceback" not in text
    # And only the demo goes on, embedded, with the exit code of that
    assert ("EMBEDDED" in result.stdout) == (script == "demo")
    assert result.returncode == (7 if script == "demo" else 1)
    assert not machine.env.exists()


@pytest.fixture
def others(machine: Machine) -> Machine:
    """A checkout of a user who is not root."""
    os.chown(machine.root, NOBODY, NOBODY)
    return machine


@needs_root
@needs_system_python
def test_without_docker_and_not_root_the_one_who_can_install_it_is_named(others: Machine) -> None:
    debian = "from scripts import apt\napt.distribution = lambda: apt.Distribution('debian', 'Debian 12', 12, 'bookworm')"

    result = others.script("up", prelude=debian, user=NOBODY)

    assert result.returncode == 1
    assert "Only root can install it: run `sudo make up`" in result.stderr
    assert "docker.io, docker-cli, docker-buildx, docker-compose" in result.stderr


def test_without_docker_on_another_distribution_what_to_install_is_named(machine: Machine) -> None:
    fedora = (
        "from scripts import apt\napt.distribution = lambda: apt.Distribution('fedora', 'Fedora 42', 42, '')"
    )

    result = machine.script("up", prelude=fedora)

    assert result.returncode == 1
    assert "only on Debian and Ubuntu, and this is Fedora 42" in result.stderr
    assert "Docker Engine 25 or later with its Compose and Buildx plugins" in result.stderr


@needs_root
@needs_system_python
def test_not_root_and_no_access_to_the_socket_names_the_group(others: Machine) -> None:
    # Given an engine whose socket is root's alone, and a client that therefore reaches nothing
    FakeDocker(engine=None).install(others.programs)
    socket = others.root / "docker.sock"
    socket.touch(mode=0o600)

    # When another user starts the stack
    result = others.script("up", prelude=f"engine.SOCKET = Path({str(socket)!r})", user=NOBODY)

    # Then the message says that it is about access, and how to get it
    assert result.returncode == 1
    assert f"this user may not use it ({socket} is closed to it)" in result.stderr
    assert "sudo usermod -aG docker nobody" in result.stderr


@needs_root
@needs_system_python
def test_not_root_and_an_engine_that_is_stopped_names_how_to_start_it(others: Machine) -> None:
    FakeDocker(engine=None).install(others.programs)
    (others.programs / "dockerd").touch(mode=0o755)

    result = others.script("up", user=NOBODY)

    assert result.returncode == 1
    assert (
        "No Docker engine answers, and only root can start it: `sudo systemctl start docker`" in result.stderr
    )


@pytest.mark.parametrize(
    ("docker", "lacking"),
    [
        (FakeDocker(compose=None), "no Compose."),
        (FakeDocker(buildx=False), "no BuildKit (buildx)."),
        (FakeDocker(compose=None, buildx=False), "no Compose and no BuildKit (buildx)."),
    ],
)
def test_an_engine_without_a_plugin_says_which_one(
    machine: Machine, docker: FakeDocker, lacking: str
) -> None:
    client = docker.install(machine.programs)

    result = machine.script("up", INSTALL_DOCKER="no")

    assert result.returncode == 1
    assert f"The docker client {client} has {lacking}" in result.stderr


def test_an_engine_elsewhere_that_does_not_answer_is_named(machine: Machine) -> None:
    FakeDocker(engine=None).install(machine.programs)

    result = machine.script("up", DOCKER_HOST="tcp://builder.example:2376")

    assert result.returncode == 1
    assert "No engine answers at DOCKER_HOST=tcp://builder.example:2376." in result.stderr


# --- finding a client ---------------------------------------------------------------------------------------


def test_a_client_with_all_plugins_is_taken_before_one_without_that_comes_first(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an old client first on PATH, and the distribution's with its plugins behind it
    FakeDocker(compose=None, buildx=False).install(programs)
    good = FakeDocker().install(tmp_path / "usr-bin")
    monkeypatch.setattr(engine, "SYSTEM_FOLDERS", [str(tmp_path / "usr-bin")])

    assert engine.docker() == str(good)
    assert engine.has_plugins()


def test_with_a_running_engine_and_plugins_nothing_is_installed_or_started(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeDocker().install(programs)
    for name in ("install", "start"):
        monkeypatch.setattr(engine, name, lambda: pytest.fail("it runs already"))

    engine.ensure()

    assert "Docker engine answers: 26.1.5" in capsys.readouterr().out


def test_a_plugin_that_is_still_missing_after_the_install_is_reported(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDocker(buildx=False).install(programs)
    monkeypatch.setattr(engine, "install", lambda: None)

    with pytest.raises(NoEngine, match=r"has no BuildKit \(buildx\)\."):
        engine.ensure()


def test_a_client_that_hangs_counts_as_no_answer(programs: Path) -> None:
    client = programs / "docker"
    client.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    client.chmod(0o755)

    assert not engine.answers([str(client), "version"], timeout=0.2)


@pytest.mark.parametrize(
    ("host", "elsewhere"),
    [
        ("", False),
        ("unix:///run/user/1000/docker.sock", False),
        ("tcp://10.0.0.1:2375", True),
        ("ssh://me@host", True),
    ],
)
def test_only_an_engine_on_another_machine_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, host: str, elsewhere: bool
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)

    assert engine.is_elsewhere() is elsewhere


# --- installing: what would be installed, with apt replaced ---------------------------------------------------


@pytest.fixture
def installed(programs: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was pinned and installed, in order; apt itself is not run."""
    assert programs
    seen: list[str] = []
    monkeypatch.setattr(apt, "pin_suite", lambda suite: seen.append(f"pin {suite}"))
    monkeypatch.setattr(apt, "install", lambda title, packages: seen.extend(packages))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return seen


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (
            DEBIAN_12,
            ["pin trixie", "docker.io/trixie", "docker-cli/trixie", "docker-buildx/trixie", "docker-compose/trixie",
             "iptables"],
        ),
        (DEBIAN_13, ["docker.io", "docker-cli", "docker-buildx", "docker-compose", "iptables"]),
        (DEBIAN_SID, ["docker.io", "docker-cli", "docker-buildx", "docker-compose", "iptables"]),
        (UBUNTU, ["docker.io", "docker-buildx", "docker-compose-v2", "iptables"]),
    ],
)  # fmt: skip
def test_each_distribution_gets_its_own_packages(
    installed: list[str], monkeypatch: pytest.MonkeyPatch, distribution: Distribution, expected: list[str]
) -> None:
    monkeypatch.setattr(apt, "distribution", lambda: distribution)

    engine.install()

    assert installed == expected


def test_on_a_terminal_a_no_installs_nothing(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "distribution", lambda: DEBIAN_13)
    monkeypatch.setattr(engine, "attended", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(engine, "confirm", asked.append)

    with pytest.raises(NoEngine, match="Nothing was installed"):
        engine.install()

    assert installed == []
    assert "docker.io, docker-cli" in asked[0]


def test_an_install_that_fails_counts_as_no_engine_with_the_reason(
    installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Failure("Unable to fetch some archives")

    monkeypatch.setattr(apt, "distribution", lambda: DEBIAN_13)
    monkeypatch.setattr(apt, "install", broken)

    # Then `make demo` can fall back, and the reason is not lost
    with pytest.raises(NoEngine, match="Unable to fetch some archives"):
        engine.install()
    assert installed == []


# --- starting -------------------------------------------------------------------------------------------------

FAKE_DOCKERD = """#!/bin/bash
# A dockerd that fails as the real one does over a pid file: a line on stderr, exit code 1.
echo 'failed to start daemon, ensure docker is not running or delete /var/run/docker.pid'
exit 1
"""


@pytest.fixture
def by_hand(programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of root without systemd, whose dockerd is the test's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "SYSTEMD", Path("/nonexistent"))
    return programs


def test_an_engine_that_does_not_start_shows_the_end_of_its_log(by_hand: Path) -> None:
    # Given a dockerd that gives up at once
    FakeDocker(engine=None).install(by_hand)
    (by_hand / "dockerd").write_text(FAKE_DOCKERD)
    (by_hand / "dockerd").chmod(0o755)

    # When it is started
    with pytest.raises(NoEngine, match=r"delete /var/run/docker.pid") as failure:
        engine.start()

    # Then it was tried several times, and the message names log and alternative
    assert engine.DAEMON_LOG.read_text().count("failed to start daemon") == engine.START_ATTEMPTS
    assert str(engine.DAEMON_LOG) in str(failure.value)
    assert "make dev" in str(failure.value)


# The engine outlives the process that started it: that is meant.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_first_attempt_that_fails_is_followed_by_one_that_works(by_hand: Path, tmp_path: Path) -> None:
    # Given a dockerd that gives up once and lives from its second start on, and a client that sees it then
    pid, tried = tmp_path / "pid", tmp_path / "tried"
    (by_hand / "dockerd").write_text(
        f"#!/bin/bash\n[ -e {tried} ] && echo $$ > {pid} && exec /bin/sleep 30\n> {tried}\nexit 1\n"
    )
    (by_hand / "dockerd").chmod(0o755)
    (by_hand / "docker").write_text(f"#!/bin/bash\n[ -s {pid} ]\n")
    (by_hand / "docker").chmod(0o755)

    # When it is started
    engine.start()

    # Then it runs, in a session of its own that no Ctrl-C reaches
    daemon = int(pid.read_text())
    assert os.getsid(daemon) == daemon
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)


def test_a_client_without_any_engine_says_so(by_hand: Path) -> None:
    FakeDocker(engine=None).install(by_hand)

    with pytest.raises(NoEngine, match="no engine \\(dockerd\\) on this machine"):
        engine.start()


def test_under_systemd_a_start_that_fails_names_the_journal(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path)
    (programs / "systemctl").write_text("#!/bin/bash\necho 'Unit docker.service is masked.'\nexit 1\n")
    (programs / "systemctl").chmod(0o755)

    with pytest.raises(NoEngine, match=r"Unit docker.service is masked") as failure:
        engine.start()

    assert "journalctl -u docker" in str(failure.value)
    assert "make dev" in str(failure.value)


# --- pid files that a killed engine left ------------------------------------------------------------------------


@contextmanager
def process_named(name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real process whose name in /proc is `name`."""
    program = folder / name
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    try:
        wait_until(lambda: state(process.pid)[0], 5, "its name", until=lambda seen: seen == name, pause=0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def state(pid: int) -> tuple[str, str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return re.findall(r"^Name:\t(.*)$", status, re.M)[0], re.findall(r"^State:\t(\w)", status, re.M)[0]


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    return tmp_path / "docker.pid"


def test_the_pid_file_of_a_living_engine_stays(pid_file: Path, tmp_path: Path) -> None:
    with process_named("dockerd", tmp_path) as process:
        pid_file.write_text(f"{process.pid}\n")

        engine.remove_stale_pid_files({pid_file: "dockerd"})

        assert pid_file.exists()


def test_the_pid_file_of_an_engine_that_is_gone_goes(
    pid_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with process_named("dockerd", tmp_path) as process:
        pid_file.write_text(str(process.pid))

    engine.remove_stale_pid_files({pid_file: "dockerd"})

    assert not pid_file.exists()
    assert f"{pid_file} is left from an engine that was killed: removed" in capsys.readouterr().out


def test_the_pid_file_of_an_engine_that_is_a_zombie_goes(pid_file: Path, tmp_path: Path) -> None:
    # Given an engine that was killed, and that nobody has waited for
    with process_named("dockerd", tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: state(process.pid)[1], 5, "a zombie", until=lambda seen: seen == "Z", pause=0.01)
        pid_file.write_text(str(process.pid))

        engine.remove_stale_pid_files({pid_file: "dockerd"})

        assert not pid_file.exists()


@pytest.mark.parametrize("name", ["python", "containerd", "dockerd-rootless"])
def test_the_pid_file_whose_number_another_program_has_now_goes(
    pid_file: Path, tmp_path: Path, name: str
) -> None:
    with process_named(name[:15], tmp_path) as process:
        pid_file.write_text(str(process.pid))

        engine.remove_stale_pid_files({pid_file: "dockerd"})

        assert not pid_file.exists()


def test_a_pid_file_that_is_missing_or_holds_no_number_is_no_error(pid_file: Path) -> None:
    engine.remove_stale_pid_files({pid_file: "dockerd"})
    pid_file.write_text("")

    engine.remove_stale_pid_files({pid_file: "dockerd"})

    assert pid_file.exists()


def test_the_engines_own_two_pid_files_are_looked_at() -> None:
    assert {file.name: program for file, program in engine.PID_FILES.items()} == {
        "docker.pid": "dockerd",
        "containerd.pid": "containerd",
    }
