"""Docker Compose as the scripts call it, and what they make of its answers."""

import json
from pathlib import Path

import pytest

from scripts import compose
from scripts.compose import Container
from scripts.console import ROOT, Failure
from tests.unit.machines import FakeDocker


def ps(programs: Path, *entries: dict[str, object], code: int = 0, error: str = "") -> None:
    """A docker whose `compose ps --format json` prints these, one JSON object a line as Compose 2.21 and later."""
    client = FakeDocker().install(programs)
    lines = "\n".join(json.dumps(entry) for entry in entries)
    script = client.read_text().replace(
        '"compose "*) exit 0 ;;',
        f'"compose "*) echo \'{error}\' >&2; cat <<"END"\n{lines}\nEND\n exit {code} ;;',
    )
    client.write_text(script)
    (programs / "cat").symlink_to("/bin/cat")


def entry(
    service: str, state: str = "running", health: str = "", code: int = 0, oneoff: bool = False
) -> dict[str, object]:
    labels = f"com.docker.compose.service={service},com.docker.compose.oneoff={oneoff},x=1"
    return {"Name": f"p-{service}-1", "Service": service, "State": state, "Health": health, "ExitCode": code,
            "Labels": labels, "Publishers": None}  # fmt: skip


def test_containers_are_read_as_compose_prints_them(programs: Path, env: Path) -> None:
    env.touch()
    ps(programs, entry("dagit", health="healthy"), entry("init", "exited"))

    assert compose.containers() == [
        Container("p-dagit-1", "dagit", "running", "healthy", 0),
        Container("p-init-1", "init", "exited", "", 0),
    ]


def test_a_container_of_docker_compose_run_is_none_of_the_stacks(programs: Path, env: Path) -> None:
    """`make run` in another terminal, or one that somebody left behind, must not make the stack look unwell."""
    env.touch()
    ps(programs, entry("cli", "exited", code=1, oneoff=True), entry("dagit", health="healthy"))

    assert [container.service for container in compose.containers()] == ["dagit"]


@pytest.mark.parametrize(
    ("service", "state", "health", "code", "well", "condition"),
    [
        ("dagit", "running", "healthy", 0, True, "healthy"),
        ("dagit", "running", "starting", 0, False, "starting"),
        ("dagit", "running", "unhealthy", 0, False, "unhealthy"),
        ("dagit", "running", "", 0, True, "running"),
        ("dagit", "restarting", "", 1, False, "restarting"),
        ("dagit", "exited", "", 0, False, "ended with 0"),
        ("init", "exited", "", 0, True, "ended with 0"),
        ("init", "exited", "", 1, False, "ended with 1"),
        ("init", "running", "", 0, False, "running"),
    ],
)
def test_a_service_is_well_when_it_is_healthy_and_the_one_shot_when_it_has_ended(  # noqa: PLR0917
    service: str, state: str, health: str, code: int, well: bool, condition: str
) -> None:
    container = Container("x", service, state, health, code)

    assert container.is_well is well
    assert container.condition == condition


@pytest.mark.parametrize(
    ("name", "state", "abandoned"),
    [
        ("0d548246c6f1_p-runner-1", "created", True),
        ("0d548246c6f1_p-runner-1", "running", False),
        ("p-runner-1", "created", False),
    ],
)
def test_a_container_made_in_anothers_place_but_never_started_is_abandoned(
    name: str, state: str, abandoned: bool
) -> None:
    assert Container(name, "runner", state, "", 0).is_abandoned is abandoned


def test_what_compose_complains_of_is_passed_on(programs: Path, env: Path) -> None:
    env.touch()
    ps(programs, code=15, error="yaml: line 3: mapping values are not allowed")

    with pytest.raises(Failure, match=r"`docker compose ps .*` failed:\nyaml: line 3"):
        compose.containers()


def test_containers_are_listed_again_when_one_goes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["Error response from daemon: No such container: 70bec2d7", ""])

    def output(*_: str) -> str:
        if complaint := next(answers):
            raise Failure(complaint)
        return ""

    monkeypatch.setattr(compose, "output", output)
    assert compose.containers() == []


def test_no_container_has_the_engines_socket() -> None:
    """Whoever has it owns the host: what starts containers runs there itself (scripts/autoscaling)."""
    files = [*ROOT.glob("*.yaml"), *(ROOT / "compose").rglob("*.yaml"), *(ROOT / "bench").rglob("*.yaml")]

    assert ROOT / "compose" / "workers.yaml" in files
    assert [file.name for file in files if "docker.sock" in file.read_text(encoding="utf-8")] == []


def test_another_env_file_is_another_stack(programs: Path, env: Path) -> None:
    client = FakeDocker().install(programs)

    assert compose.compose() == [
        str(client),
        "compose",
        "--project-directory",
        str(ROOT),
        "--env-file",
        str(env),
    ]


@pytest.mark.parametrize(
    ("printed", "ports"),
    [
        ("127.0.0.1:3000->3000/tcp", {3000}),
        ("127.0.0.1:9000-9001->9000-9001/tcp", {9000, 9001}),
        ("5672/tcp, 127.0.0.1:15672->15672/tcp", {15672}),
        ("0.0.0.0:80->3000/tcp, [::]:80->3000/tcp", {80}),
        ("5432/tcp", set()),
        ("", set()),
    ],
)
def test_published_ports_are_read_as_docker_prints_them(
    programs: Path, env: Path, printed: str, ports: set[int]
) -> None:
    env.touch()
    FakeDocker(ports=printed).install(programs)

    assert compose.published_ports() == ports


def test_the_name_of_another_project_in_the_shell_is_refused_before_its_containers_are_removed(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a shell that names a project with a service that this stack has not
    env.write_text("COMPOSE_PROJECT_NAME=mine\n")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "shop")
    monkeypatch.setattr(compose, "ask", lambda *_: "cart\ncart\npostgres")
    monkeypatch.setattr(compose, "output", lambda *_: "postgres\nworker\n")

    with pytest.raises(Failure, match="name of another project, with cart: unset it"):
        compose.require_env_file()


@pytest.mark.parametrize(
    ("named", "services"), [("mine", "cart"), ("copy", ""), ("copy", "worker\npostgres")]
)
def test_a_name_in_the_shell_that_is_the_stacks_own_or_a_new_ones_is_taken(
    named: str, services: str, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("COMPOSE_PROJECT_NAME=mine\n")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", named)
    monkeypatch.setattr(compose, "ask", lambda *_: services)
    monkeypatch.setattr(compose, "output", lambda *_: "postgres\nworker\n")

    compose.require_env_file()
