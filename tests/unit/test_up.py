"""`make up`: what it takes for done, and what it says when a service is not well."""

import subprocess
from pathlib import Path

import pytest

from scripts import base_image, code_location, compose, engine, login, up
from scripts.compose import Container
from scripts.console import Failure
from tests.unit.machines import FakeDocker

SERVICES = ("dagit", "worker", "worker-heavy")


def container(
    service: str, number: int = 1, health: str = "healthy", state: str = "running", code: int = 0
) -> Container:
    return Container(f"p-{service}-{number}", service, state, health, code)


WELL = [container("dagit"), container("worker"), container("worker", 2), container("worker-heavy")]


@pytest.fixture
def stack(env: Path, monkeypatch: pytest.MonkeyPatch) -> list[Container]:
    """The containers that Compose shows, all with the image and settings that it would give them now."""
    env.write_text("WORKERS=2\n")
    shown = list(WELL)
    hashes = {service: f"hash-of-{service}" for service in (*SERVICES, "extra")}
    answers = {"--services": "\n".join(SERVICES)}
    monkeypatch.setattr(compose, "containers", lambda: shown)
    monkeypatch.setattr(compose, "config_hashes", lambda: hashes)
    monkeypatch.setattr(compose, "compose", lambda: ["docker", "compose"])
    monkeypatch.setattr(compose, "output", lambda *arguments: answers.get(arguments[1], "the end of its log"))
    monkeypatch.setattr(base_image, "image_id", lambda image: "sha256:1")
    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: Inspected(shown))
    return shown


class Inspected:
    """`docker inspect` of containers that are current, one line each."""

    def __init__(self, shown: list[Container]) -> None:
        self.stdout = "".join(f"{c.service} hash-of-{c.service} sha256:1 stack/image\n" for c in shown)


def test_a_stack_with_all_services_and_workers_is_up(stack: list[Container]) -> None:
    assert stack
    assert up.is_up()


def test_a_missing_service_is_not_up_though_another_is_too_many(stack: list[Container]) -> None:
    stack[0] = container("extra")

    assert not up.is_up()


@pytest.mark.parametrize("health", ["starting", "unhealthy"])
def test_a_service_that_is_not_healthy_is_not_up(stack: list[Container], health: str) -> None:
    stack[0] = container("dagit", health=health)

    assert not up.is_up()


@pytest.mark.parametrize("workers", ["1", "3"])
def test_another_number_of_workers_is_not_up(stack: list[Container], env: Path, workers: str) -> None:
    assert stack
    env.write_text(f"WORKERS={workers}\n")

    assert not up.is_up()


@pytest.mark.parametrize(
    ("service", "settings"),
    [("worker-heavy", "HEAVY_WORKERS=0\n"), ("worker-heavy", "HEAVY_WORKERS=0\nAUTOSCALE=worker:1..8\n")],
)
def test_a_service_that_is_to_have_no_worker_is_not_missing(
    stack: list[Container], env: Path, service: str, settings: str
) -> None:
    stack.remove(container(service))
    assert not up.is_up()
    env.write_text(f"WORKERS=2\n{settings}")

    assert up.is_up()


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_service_of_your_own_is_as_many_as_make_autoscale_left(
    stack: list[Container], env: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    env.write_text(f"WORKERS=2\nAUTOSCALE=worker-extra:0..2\nEXTRA_WORKERS={number}\n")
    monkeypatch.setattr(up, "started_services", lambda: {*SERVICES, "worker-extra"})
    assert stack

    assert up.is_up() == (number == 0)


@pytest.mark.parametrize(
    "fields",
    [
        ["dagit", "another-hash", "sha256:1", "image"],
        ["dagit", "hash", "sha256:old", "image"],
        ["orphan", "hash", "sha256:1", "image"],
    ],
    ids=["settings", "image", "service"],
)
def test_a_container_with_other_settings_or_image_is_not_current(
    monkeypatch: pytest.MonkeyPatch, fields: list[str]
) -> None:
    monkeypatch.setattr(base_image, "image_id", lambda image: "sha256:1")

    assert up.is_current(["dagit", "hash", "sha256:1", "image"], {"dagit": "hash"})
    assert not up.is_current(fields, {"dagit": "hash"})


def test_when_all_is_up_nothing_is_started(
    stack: list[Container], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stack

    up.start()

    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("service", ["postgres", "backup"])
def test_what_env_has_switched_off_goes(
    stack: list[Container], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(up, "run_logged", lambda title, command: commands.append(command))
    stack.append(container(service))

    assert not up.is_up()
    up.remove_unwanted()

    (command,) = commands
    assert command[-1] == service
    assert {"rm", "--stop"} < set(command)


def test_a_service_that_ended_stops_the_wait_at_once_with_its_log(stack: list[Container]) -> None:
    stack[0] = container("dagit", state="exited", health="", code=1)

    with pytest.raises(
        Failure, match=r"dagit is not well \(ended with 1\).*docker compose logs dagit"
    ) as failure:
        up.wait_until_healthy()

    assert str(failure.value).endswith("the end of its log")


def fail_to_start(*_: object, **__: object) -> None:
    raise Failure("what Compose says")


def test_when_compose_fails_for_a_service_that_did_the_log_of_that_one_is_shown(
    stack: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack[:2] = [container("dagit", state="exited", health=""), container("worker", state="exited", code=3)]
    monkeypatch.setattr(up, "run_logged", fail_to_start)

    with pytest.raises(Failure, match=r"worker is not well \(ended with 3\)"):
        up.start()


def test_when_compose_fails_by_itself_its_own_words_are_shown(
    stack: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was stopped for another to take its place has not failed."""
    stack[0] = container("dagit", state="exited", health="")
    monkeypatch.setattr(up, "run_logged", fail_to_start)

    with pytest.raises(Failure, match="what Compose says"):
        up.start()


def test_what_is_waited_for_is_shown_whatever_came_after_it() -> None:
    awaited = up.Awaited()
    lines = (
        "postgres-1  Waiting",
        "minio-1  Waiting",
        "minio-1  Healthy",
        "postgres-1  Healthy",
        "init-1  Waiting",
    )

    assert [awaited(f"Container {line}") for line in lines] == [
        "waiting for postgres-1",
        "waiting for minio-1, postgres-1",
        "waiting for postgres-1",
        "Container postgres-1  Healthy",
        "waiting for init-1",
    ]
    assert awaited("Image is up to date") == "waiting for init-1"


def test_what_an_interrupted_start_left_half_made_is_removed_first(
    stack: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    stack.append(Container("0d548246c6f1_p-dagit-1", "dagit", "created", "", 0))
    monkeypatch.setattr(engine, "ask", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(up, "run_logged", fail_to_start)

    with pytest.raises(Failure):
        up.start()

    assert asked == [("rm", "--force", "0d548246c6f1_p-dagit-1")]


def test_a_service_that_stays_unhealthy_ends_the_wait_in_bounded_time(
    stack: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack[0] = container("dagit", health="unhealthy")
    monkeypatch.setattr(up, "HEALTHY_TIMEOUT_SECS", 0)

    with pytest.raises(Failure, match=r"dagit is not well \(unhealthy\)"):
        up.wait_until_healthy()


def test_a_number_of_workers_that_is_none_is_named(env: Path) -> None:
    env.write_text("WORKERS=many\n")

    with pytest.raises(Failure, match=r"WORKERS=many in \.env"):
        up.wanted_scales()


def test_the_addresses_are_those_of_the_settings_and_the_next_command_is_named(
    env: Path, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeDocker().install(programs)
    env.write_text("DAGIT_PORT=3100\nMINIO_CONSOLE_PORT=9101\nRABBITMQ_HOST=mq.example\n")

    up.addresses()

    shown = capsys.readouterr().out
    assert "http://127.0.0.1:3100" in shown
    assert "http://127.0.0.1:9101" in shown
    assert "MINIO_ROOT_PASSWORD in .env" in shown
    # An outside store has no page of ours
    assert "RabbitMQ" not in shown
    assert "make demo" in shown


def test_a_project_of_ones_own_has_no_flights(
    env: Path, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeDocker().install(programs)
    env.write_text(f"PROJECT={tmp_path}\n")

    up.addresses()

    shown = capsys.readouterr().out
    assert "make demo" not in shown
    assert "make run JOB=" in shown


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("[::1]", "[::1]"),
        ("::", "127.0.0.1"),
    ],
)
def test_pages_are_looked_for_where_they_are_bound(env: Path, address: str, host: str) -> None:
    env.write_text(f"BIND_ADDRESS={address}\n")

    assert up.local_url("http") == f"http://{host}:3000"


def test_what_is_mounted_into_a_container_becomes_readable_for_its_user_and_nothing_else_changes(
    tmp_path: Path,
) -> None:
    # Given a folder of a checkout made under `umask 077`, with one file that somebody opened further
    folder = tmp_path / "mounted"
    (folder / "inner").mkdir(parents=True)
    for name, mode in {"inner/a": 0o600, "inner/run": 0o700, "open": 0o664}.items():
        (folder / name).touch()
        (folder / name).chmod(mode)
    for path in (folder, folder / "inner"):
        path.chmod(0o700)

    up.make_readable(folder)

    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
    assert modes == {"mounted": "0o755", "inner": "0o755", "a": "0o644", "run": "0o744", "open": "0o664"}


def test_a_start_without_addresses_for_networks_says_how_to_have_more() -> None:
    log = "failed to create network x: could not find an available, non-overlapping IPv4 address pool among the defaults"

    assert "default-address-pools" in up.cure(log)
    assert up.cure("exec /usr/bin/tini: no such file") == ""


def test_who_asks_through_a_new_door_has_its_certificate(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOGIN=on, then `make deploy` or `make host`: a traceback named a file that only `make up` wrote."""
    env.write_text("LOGIN=on\nDOOR_ADMIN_PASSWORD=x\n")
    done: list[str] = []
    monkeypatch.setattr(login, "hand_over_certificate", lambda: done.append("certificate"))
    monkeypatch.setattr(login, "opener", lambda: done.append("asked"))
    monkeypatch.setattr(code_location, "check", lambda *_: None)
    monkeypatch.setattr(engine, "is_elsewhere", lambda: False)

    up.check_code_location()

    assert done == ["certificate", "asked"]
