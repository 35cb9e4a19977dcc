"""Docker Compose as the scripts call it, and what they make of its answers."""

from pathlib import Path

import pytest

from scripts import compose
from scripts.compose import Container
from scripts.console import ROOT, Failure
from tests.unit.machines import FakeDocker


@pytest.mark.parametrize(
    ("state", "status", "health", "code"),
    [
        ("running", "Up 2 minutes", "", 0),
        ("running", "Up 2 minutes (healthy)", "healthy", 0),
        ("running", "Up Less than a second (health: starting)", "starting", 0),
        ("running", "Up About an hour (unhealthy)", "unhealthy", 0),
        ("paused", "Up 2 minutes (Paused)", "", 0),
        ("restarting", "Restarting (1) 3 seconds ago", "", 1),
        ("exited", "Exited (137) 5 minutes ago", "", 137),
        ("created", "Created", "", 0),
        ("dead", "Dead", "", 0),
    ],
)
def test_a_container_is_read_as_the_engine_prints_it(state: str, status: str, health: str, code: int) -> None:
    line = f"p-dagit-1\tdagit\t{state}\t{status}\t0123456789ab\n"
    assert compose.parsed(line) == [Container("p-dagit-1", "dagit", state, health, code, "0123456789ab")]


def test_containers_are_those_of_one_project_without_those_of_docker_compose_run() -> None:
    """`make run` in another terminal, or one that somebody left behind, must not make the stack look unwell."""
    filters = [each for each in compose.listing("mine") if each.startswith("label=")]
    assert filters == ["label=com.docker.compose.project=mine", "label=com.docker.compose.oneoff=False"]


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


def test_what_the_engine_complains_of_is_passed_on_and_is_no_empty_stack(programs: Path, env: Path) -> None:
    env.touch()
    client = FakeDocker().install(programs)
    complaint = "echo 'permission denied: /var/run/docker.sock' >&2; exit 1"
    client.write_text(client.read_text().replace('"compose "*)', f'"ps "*) {complaint} ;;\n  "compose "*)'))

    with pytest.raises(Failure, match=r"`docker ps` failed:\npermission denied"):
        compose.containers()


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
