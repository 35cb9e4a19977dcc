"""Further hosts: their files, their names, what is sent to them, and what is required of them."""

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts import compose, connections, engine, env_file, up
from scripts.compose import Container
from scripts.console import Failure, Progress
from scripts.hosts import file, host, images, logins, logs, membership, preflight, services
from scripts.hosts.host import Host

SETTINGS = """\
COMPOSE_PROJECT_NAME=mine
INTERNAL_TLS=on
CLUSTER_ADDRESS=10.0.0.1
POSTGRES_PASSWORD=of-the-first
POSTGRES_SUPERUSER_PASSWORD=root-of-postgres
WORKER_MEMORY=3g
HOSTS=box2
"""
STORES = ("postgres", "rabbitmq", "s3")


@pytest.fixture(autouse=True)
def env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stack's .env, with one host."""
    path = tmp_path / ".env"
    path.write_text(SETTINGS)
    monkeypatch.setenv("STACK_ENV_FILE", str(path))
    monkeypatch.delenv("SKIP", raising=False)
    monkeypatch.setattr(compose, "output", lambda *_: "CERTIFICATE\n")
    return path


@pytest.fixture
def box2() -> Host:
    made = Host("box2")
    file.write(made, "ssh://me@box2")
    return made


# --- the file ------------------------------------------------------------------------------------------


def test_a_host_s_file_has_what_its_workers_need_and_no_password_of_the_first(box2: Host) -> None:
    found = box2.settings
    assert found["HOST_ENGINE"] == box2.engine == "ssh://me@box2"
    assert found["POSTGRES_SSLMODE"] == "verify-full"
    assert found["RABBITMQ_SCHEME"] == "amqps"
    assert found["S3_ENDPOINT_URL"] == "https://minio:9443"
    assert found["WORKER_MEMORY"] == "3g"
    assert not {"of-the-first", "root-of-postgres"} & set(found.values())
    assert box2.file.stat().st_mode & 0o077 == 0


def test_what_its_owner_decided_and_its_logins_stay_when_it_is_written_anew(box2: Host) -> None:
    before = box2.settings
    env_file.set_values({"WORKERS": "7", "DATA_DIR": "/srv/data"}, box2.file)
    file.write(box2)
    assert box2.settings == before | {"WORKERS": "7", "DATA_DIR": "/srv/data"}


def test_new_logins_have_new_names_so_that_former_ones_can_be_told_and_closed(box2: Host) -> None:
    before = box2.settings
    file.write(box2, renewed=("postgres",))
    after = box2.settings
    assert after["POSTGRES_USER"] != before["POSTGRES_USER"]
    assert after["POSTGRES_PASSWORD"] != before["POSTGRES_PASSWORD"]
    assert after["S3_ACCESS_KEY"] == before["S3_ACCESS_KEY"]
    assert all(
        logins.LOGIN.fullmatch(after[name]) for name in ("POSTGRES_USER", "RABBITMQ_USER", "S3_ACCESS_KEY")
    )


def test_an_outside_store_is_reached_as_the_first_host_does(env: Path, box2: Host) -> None:
    odd = "a$b#c'd"
    env_file.set_values({"POSTGRES_HOST": "db.test", "POSTGRES_PASSWORD": "'a$b#c\\'d'"}, env)
    file.write(box2)
    assert box2.settings["POSTGRES_HOST"] == "db.test"
    assert box2.settings["POSTGRES_PASSWORD"] == odd
    assert logins.own_stores() == ["rabbitmq", "s3"]


def test_a_host_s_run_queue_knows_the_runners_of_all(env: Path, box2: Host) -> None:
    assert box2.settings["RUNNERS_IN_ALL"] == "2"
    assert box2.settings["RUNNERS"] == box2.settings["DAEMONS"] == "0"
    env_file.set_values({"RUNNERS": "3", "KEEP_RUNS_DAYS": "30", "DAEMON_MEMORY": "1g"}, env)
    env_file.set_values({"RUNNERS": "1", "DAEMONS": "1", "DAEMON_MEMORY": "4g"}, box2.file)
    services.count()
    file.write(box2)
    found = box2.settings
    assert (found["RUNNERS_IN_ALL"], found["RUNNERS"]) == ("4", "1")
    assert (found["DAEMONS_IN_ALL"], found["DAEMONS"]) == ("2", "1")
    # What is kept is decided once, what a daemon may have by each host.
    assert (found["KEEP_RUNS_DAYS"], found["DAEMON_MEMORY"]) == ("30", "4g")


# --- names and reach -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name", "chosen"),
    [
        ("ssh://me@box2", "", "box2"),
        ("ssh://me@box2.lan:2222", "box3", "box3"),
        ("ssh://me@box2.lan:2222", "", "box2"),
        ("box3", "", "box3"),
        ("by-hand", "box4", "box4"),
    ],
)
def test_a_host_is_named_by_its_address_or_by_name(
    monkeypatch: pytest.MonkeyPatch, address: str, name: str, chosen: str
) -> None:
    monkeypatch.setenv("NAME", name)
    assert membership.chosen_name(address) == chosen


@pytest.mark.parametrize(
    "address", ["ssh://me@10.0.0.2", "by-hand", "unix:///run/docker.sock", "ssh://me@example", "Box"]
)
def test_what_can_t_be_a_name_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.delenv("NAME", raising=False)
    with pytest.raises(Failure, match="NAME=box2"):
        membership.chosen_name(address)


@pytest.mark.parametrize("address", ["ssh://me@other", ""])
def test_a_second_machine_by_the_name_of_one_that_has_joined_is_refused(box2: Host, address: str) -> None:
    membership.require_same("box2", "ssh://me@box2")
    membership.require_same("box3", address)
    with pytest.raises(Failure, match=r"box2 has joined already, at ssh://me@box2.*NAME=box3"):
        membership.require_same("box2", address)


def test_a_host_that_does_not_answer_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, box2: Host
) -> None:
    monkeypatch.setattr(host, "unreachable", lambda address: f"no route to {address}")
    with pytest.raises(Failure, match=r"box2: no route to ssh://me@box2(.|\n)*SKIP=box2 goes on without"):
        host.require_reachable()
    monkeypatch.setenv("SKIP", "box2")
    assert host.require_reachable() == []


def test_ssh_s_own_words_say_why_a_host_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        'error during connect: Get "http://docker.example.com/v1.50/version": command [ssh -l me -- box2 docker system'
        " dial-stdio] has exited with exit status 255, make sure the URL is valid: stderr=Host key verification failed.\n"
    )
    answer = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert host.unreachable("ssh://me@box2") == "Host key verification failed."
    answer.stderr = "command […]: stderr=Permission denied, please try again.\r\nme@box2: Permission denied (publickey,password).\n"
    assert host.unreachable("ssh://me@box2") == "me@box2: Permission denied (publickey,password)."
    answer.stderr = "Cannot connect to the Docker daemon at unix:///run/docker.sock.\n"
    assert host.unreachable("unix:///run/docker.sock").startswith("Cannot connect")


@pytest.fixture
def closed(box2: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stack that is up while box2 is shut out; which hosts' files there were when logins were closed."""
    found: list[str] = []
    running = [
        Container(f"mine-{name}-1", name, "running", "", 0) for name in ("postgres", "rabbitmq", "minio")
    ]
    monkeypatch.setattr(compose, "containers", lambda: running)
    monkeypatch.setattr(host, "unreachable", lambda _: "no route")
    monkeypatch.setattr(up, "is_up", lambda **_: True)
    monkeypatch.setattr(logins, "close_unnamed", lambda: found.extend(each.name for each in host.shut_out()))
    return found


def test_a_host_that_is_shut_out_loses_its_logins_then_its_file(box2: Host, closed: list[str]) -> None:
    membership.remove(box2)
    assert closed == ["box2"]
    assert host.names() == []
    assert not box2.file.exists()


def test_shutting_out_that_was_killed_is_completed_by_the_same_command_or_by_make_up(
    box2: Host, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(logins, "close_unnamed", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            membership.remove(box2)
    assert not services.are_up()
    assert host.named("box2") == box2
    with services.swapping():
        pass
    assert closed == ["box2"]
    assert services.are_up()


def test_a_host_is_shut_out_of_a_stack_that_is_down_when_that_comes_up(
    box2: Host, closed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the bad day a restore must go on without it."""
    monkeypatch.setattr(compose, "containers", list)
    membership.remove(box2)
    assert (
        "the stores are down: `make up`, or a restore, closes the logins of box2" in capsys.readouterr().out
    )
    assert host.names() == []
    assert closed == []
    assert [each.name for each in host.shut_out()] == ["box2"]


def test_files_beside_env_that_are_no_host_s_are_left_alone(env: Path) -> None:
    for name in (".env.example", ".env.local", ".env.s3.minio.dagster"):
        (env.parent / name).write_text("HOST=elsewhere\n")
    assert host.shut_out() == []


def test_a_name_in_skip_that_no_host_has_is_refused(monkeypatch: pytest.MonkeyPatch, box2: Host) -> None:
    monkeypatch.setenv("SKIP", "box3")
    with pytest.raises(Failure, match="no such host"):
        host.wanted()


def test_a_host_whose_file_is_gone_is_named() -> None:
    with pytest.raises(Failure, match=r"\.env\.box2 is not there"):
        host.joined()


def test_the_shell_does_not_win_over_a_host_s_file(monkeypatch: pytest.MonkeyPatch, box2: Host) -> None:
    monkeypatch.setenv("WORKERS", "99")
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere")
    assert not {"WORKERS", "DOCKER_HOST"} & box2.environment.keys()


# --- connections ---------------------------------------------------------------------------------------


def test_connections_count_the_workers_and_runners_of_all_hosts(box2: Host) -> None:
    connections.require_connections(2)
    env_file.set_values({"WORKERS": "60"}, box2.file)
    with pytest.raises(Failure, match="2 workers and those of 1 hosts need up to"):
        connections.require_connections(2)


# --- the image -----------------------------------------------------------------------------------------


def archive(files: dict[str, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    made.seek(0)
    return made


class Target(io.BytesIO):
    """Keeps what was written when it is closed."""

    def close(self) -> None:
        self.kept = self.getvalue()
        super().close()


def test_layers_that_are_there_are_left_out_of_what_is_sent() -> None:
    source = archive({"blobs/sha256/aa": b"x" * 50_000, "blobs/sha256/bb": b"new", "manifest.json": b"[]"})
    target = Target()
    with Progress("Sending") as progress:
        sent = images.pass_on(source, target, {"aa"}, progress)
    with tarfile.open(fileobj=io.BytesIO(target.kept)) as found:
        assert found.getnames() == ["blobs/sha256/bb", "manifest.json"]
    assert sent == len(target.kept) < 50_000


def test_a_layer_counts_as_there_only_with_all_that_are_below_it(
    monkeypatch: pytest.MonkeyPatch, box2: Host
) -> None:
    def image(*layers: str) -> dict[str, Any]:
        return {"RootFS": {"Layers": [f"sha256:{each}" for each in layers]}}

    monkeypatch.setattr(engine, "ask", lambda *_: json.dumps([image("a", "b", "c", "b")]))
    there = iter(["id1 id2", json.dumps([image("b", "c"), image("a", "b", "x")])])
    monkeypatch.setattr(Host, "output", lambda *_, **__: next(there))
    monkeypatch.setattr(Host, "docker", lambda *_: [])
    # `b` comes once more, above `c`, and there it is missing.
    assert images.layers_there(box2, "mine") == {"a"}


# --- what is required ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "place"),
    [
        ({"ID": "a", "Name": "box1"}, "this machine"),
        ({"ID": "b", "Name": "box2"}, "box2"),
        # A copy of box2's disk.
        ({"ID": "b", "Name": "box3"}, ""),
        ({"ID": "c", "Name": "box1"}, ""),
    ],
)
def test_a_machine_has_one_place_in_the_stack(
    monkeypatch: pytest.MonkeyPatch, box2: Host, info: dict[str, str], place: str
) -> None:
    monkeypatch.setattr(engine, "info", lambda: {"ID": "a", "Name": "box1"})
    monkeypatch.setattr(Host, "output", lambda *_, **__: json.dumps({"ID": "b", "Name": "box2"}))

    found = preflight.belonging(Host("box3", "ssh://me@10.0.0.3"), info)

    assert bool(found.cure) == bool(place)
    assert place in found.cure
    # What completes its own joining is no second place.
    assert not preflight.belonging(box2, {"ID": "b", "Name": "box2"}).cure


def test_a_machine_with_a_stack_of_this_name_keeps_it(monkeypatch: pytest.MonkeyPatch, box2: Host) -> None:
    running = ["worker", "daemon"]
    monkeypatch.setattr(
        Host, "containers", lambda _: [compose.Container(name, name, "running", "", 0) for name in running]
    )
    # What an interrupted joining left.
    assert not preflight.stack_of_its_own(box2).cure
    running += ["postgres", "dagit"]
    found = preflight.stack_of_its_own(box2)
    assert found.fatal
    assert "COMPOSE_PROJECT_NAME" in found.cure
    assert "dagit, postgres" in found.cure


@pytest.mark.parametrize(
    ("hosts", "address", "is_refused"),
    [
        ("", "10.0.0.9", True),
        # Left by this stack: it was shut out while nobody could reach it, or its joining was interrupted.
        ("", "10.0.0.1", False),
        # It has joined, and CLUSTER_ADDRESS is another one since.
        ("box2", "10.0.0.9", False),
    ],
)
def test_a_machine_with_workers_of_another_stack_of_this_name_keeps_them(
    monkeypatch: pytest.MonkeyPatch, box2: Host, hosts: str, address: str, is_refused: bool
) -> None:
    env_file.set_value("HOSTS", hosts)
    there = [compose.Container("mine-worker-1", "worker", "running", "", 0)]
    monkeypatch.setattr(Host, "containers", lambda _: there)
    entries = ["rabbitmq:10.0.0.7", f"postgres:{address}"]
    monkeypatch.setattr(Host, "inspected", lambda *_: [{"HostConfig": {"ExtraHosts": entries}}])

    found = preflight.workers_of_another(box2)

    assert bool(found.cure) == is_refused
    assert not is_refused or (found.fatal and found.found == "of the stack at 10.0.0.9")


@pytest.mark.parametrize(
    ("off", "is_told", "is_fatal"), [(0, False, False), (10, True, False), (400, True, True)]
)
def test_a_clock_may_be_off_by_so_much(off: int, is_told: bool, is_fatal: bool) -> None:
    info = {"SystemTime": "2026-11-30T08:00:00.123456789Z"}
    at = preflight.parsed(info["SystemTime"])
    assert at
    (found,) = preflight.clock(info, at + off, at + off + 0.5)
    assert bool(found.cure) == is_told
    assert (bool(found.cure) and found.fatal) == is_fatal


@pytest.mark.parametrize("address", ["", "0.0.0.0", "127.0.0.1", "box1"])
def test_stores_are_published_at_one_address_that_others_reach(env: Path, address: str) -> None:
    env_file.set_value("CLUSTER_ADDRESS", address, env)
    (found,) = preflight.cluster(set())
    assert "CLUSTER_ADDRESS" in found.cure


def test_a_machine_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "info", lambda: {"Architecture": "x86_64"})
    told = preflight.kind({"ServerVersion": "24.0.1", "OSType": "linux", "Architecture": "aarch64"})
    assert [bool(each.cure) for each in told] == [True, True, False]


# --- logs ----------------------------------------------------------------------------------------------


def test_lines_of_a_further_host_begin_with_its_name(monkeypatch: pytest.MonkeyPatch, box2: Host) -> None:
    def echo(container: str) -> list[str]:
        return ["sh", "-c", f"printf '\\033[2K{container}  | 2026-11-30T08:00:00Z said\\n'"]

    monkeypatch.setattr(compose, "compose", lambda: echo("worker-1"))
    monkeypatch.setattr(Host, "compose", lambda *_: echo("worker-1"))
    printed = sorted(line.strip() for line in logs.printed_lines([box2], []))
    assert printed == [f"{start}worker-1  | 2026-11-30T08:00:00Z said" for start in ("box2/", "")]
