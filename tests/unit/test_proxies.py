"""What builds and containers get of a network's proxies, and that the stack's own services never go through them."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import pytest
from requests.utils import should_bypass_proxies

from scripts import engine, env_file, images, proxies
from scripts.console import ROOT
from tests import compose_files
from tests.unit.machines import FakeDocker, calls, is_root

PROXY = "http://proxy.example:3128"
OTHER = "http://other.example:8080"
#: Services that listen nowhere.
SILENT = {"init", "daemon", "runner", "worker", "worker-heavy", "cli", "restore", "move"}


@pytest.fixture(autouse=True)
def _here(programs: Path, env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDocker().install(programs)
    env.write_text("COMPOSE_PROJECT_NAME=mine\n")
    monkeypatch.setattr(proxies, "BUILD_FOLDER", tmp_path / "build")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def client_says(tmp_path: Path, **places: dict[str, str]) -> None:
    named = {name.replace("tcp", "tcp://far:2375"): values for name, values in places.items()}
    (tmp_path / "config.json").write_text(json.dumps({"proxies": named}))


# --- the stack's own hosts -----------------------------------------------------------------------------


def test_every_service_that_listens_is_named_in_both_cases() -> None:
    named = env_file.read(proxies.OWN_HOSTS_FILE)

    assert named["NO_PROXY"] == named["no_proxy"]
    assert set(compose_files.services()) - SILENT <= set(named["NO_PROXY"].split(","))
    assert {"localhost", "127.0.0.1", "::1", "host.docker.internal"} <= set(named["NO_PROXY"].split(","))


def test_every_container_gets_them_and_then_what_was_found_of_the_network() -> None:
    own, found = proxies.OWN_HOSTS_FILE.relative_to(ROOT), "${COMPOSE_PROJECT_NAME}"

    for name, service in compose_files.services().items():
        # What follows is the project's own, which may not name proxies.
        assert service["env_file"][:2] == [
            f"../{own}", {"path": f"../.build/proxies/{found}.env", "required": False},
        ], name  # fmt: skip
    assert proxies.file().parts[-2:] == ("proxies", "mine.env")


def test_without_a_proxy_containers_get_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given what an earlier `make up` wrote behind a proxy, and NO_PROXY alone
    proxies.file().parent.mkdir(parents=True)
    proxies.file().write_text("HTTP_PROXY='http://gone'\n")
    monkeypatch.setenv("NO_PROXY", "intranet.example")

    proxies.record()

    assert not proxies.file().exists()
    assert proxies.recorded() == {}


# --- places that name a proxy --------------------------------------------------------------------------


@pytest.mark.skipif(not is_root(), reason="only root can give a folder away")
def test_after_sudo_the_checkouts_owner_can_still_use_plain_compose(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for the file at every command, also where there is no proxy, and under the umask of root."""
    os.chown(tmp_path, 4711, 4711)
    os.chown(env, 4711, 4711)
    monkeypatch.setattr(proxies, "ROOT", tmp_path)
    umask = os.umask(0o077)
    try:
        proxies.record()
        monkeypatch.setenv("HTTP_PROXY", PROXY)
        proxies.record()
    finally:
        os.umask(umask)

    found = (proxies.file(), *list(proxies.file().parents)[:2])
    assert [path.stat().st_uid for path in found] == [4711, 4711, 4711]


@pytest.mark.parametrize("name", [*proxies.PROXIES, *(name.lower() for name in proxies.PROXIES)])
def test_a_proxy_of_the_shell_reaches_containers_in_both_cases(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, PROXY)

    proxies.record()

    recorded = proxies.recorded()
    assert recorded[name.upper()] == recorded[name.lower()] == PROXY
    assert set(recorded) == {name.upper(), name.lower(), "NO_PROXY", "no_proxy"}
    assert proxies.file().stat().st_mode & 0o777 == 0o600


def test_two_values_in_two_cases_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("http_proxy", OTHER)

    proxies.record()

    assert (proxies.recorded()["HTTP_PROXY"], proxies.recorded()["http_proxy"]) == (PROXY, OTHER)


def test_the_clients_configuration_is_read_for_the_engine_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given other proxies for another engine
    client_says(
        tmp_path,
        default={"httpProxy": PROXY, "httpsProxy": OTHER, "allProxy": "socks5://s:1", "noProxy": "a.example"},
        tcp={"httpProxy": OTHER},
    )

    proxies.record()

    found = proxies.recorded()
    assert (found["HTTP_PROXY"], found["https_proxy"], found["all_proxy"]) == (PROXY, OTHER, "socks5://s:1")
    assert "a.example" in found["no_proxy"].split(",")

    # When that other one is used
    monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
    proxies.record()

    assert proxies.recorded()["http_proxy"] == OTHER


@pytest.mark.parametrize("text", ["", "{", "[]", '{"proxies": null}', '{"proxies": []}', '{"proxies": {"default": null}}'])  # fmt: skip
def test_a_clients_configuration_without_proxies_or_sense_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)

    proxies.record()

    assert proxies.recorded() == {}


def test_what_the_engine_pulls_through_is_used_where_nothing_else_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": OTHER, "NO_PROXY": "registry.example"}
    monkeypatch.setattr(engine, "ask", lambda *_: json.dumps(answer))

    proxies.record()

    assert proxies.recorded()["https_proxy"] == OTHER
    assert "registry.example" in proxies.recorded()["NO_PROXY"]
    # But not with the login that it hides.
    answer["HTTPS_PROXY"] = "http://xxxxx:xxxxx@proxy.example:3128"
    proxies.record()
    assert proxies.recorded() == {}


def test_env_goes_before_the_clients_configuration_and_that_before_the_shell(
    tmp_path: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://shell:1")
    assert proxies.found()[1]["HTTP_PROXY"] == "http://shell:1"
    client_says(tmp_path, default={"httpProxy": "http://client:1"})
    assert proxies.found()[1]["HTTP_PROXY"] == "http://client:1"
    env_file.set_value("HTTP_PROXY", "http://env:1", env)
    assert proxies.found()[1]["HTTP_PROXY"] == "http://env:1"


def test_the_users_own_exceptions_of_all_places_are_kept(
    tmp_path: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file.set_value("NO_PROXY", "env.example", env)
    env_file.set_value("RABBITMQ_HOST", "mq.example", env)
    client_says(tmp_path, default={"httpProxy": PROXY, "noProxy": "*.client.example, .c2.example"})
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,localhost")
    monkeypatch.setenv("no_proxy", "lower.example")

    proxies.record()

    direct = proxies.recorded()["NO_PROXY"].split(",")
    wanted = {"env.example", "mq.example", "*.client.example", ".c2.example", "10.0.0.0/8", "lower.example"}
    assert wanted | {"postgres", "minio", "localhost"} <= set(direct)
    assert direct.count("localhost") == 1
    assert proxies.recorded()["no_proxy"] == proxies.recorded()["NO_PROXY"]


def test_an_exception_of_everything_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other entries most programs do not understand it."""
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "*")

    proxies.record()

    assert proxies.recorded()["NO_PROXY"] == "*"


@pytest.mark.parametrize("host", ["minio:9000", "rabbitmq:15672", "dagit:3000", "prometheus:9090", "127.0.0.1:3000", "localhost"])  # fmt: skip
def test_pythons_own_clients_reach_the_stacks_services_directly(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)

    proxies.record()

    direct = proxies.recorded()["NO_PROXY"]
    assert should_bypass_proxies(f"http://{host}/", direct)
    assert proxy_bypass_environment(host, {"no": direct})
    assert not should_bypass_proxies("http://example.com/", direct)


# --- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password", ["p$HOME", "p${HOME}", "a#b c", 'say"x"', "back\\slash", "per%25cent", "§ü"]
)
def test_a_password_of_any_characters_reaches_containers_as_it_is_and_is_not_printed(
    password: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://DOMAIN\\me:{password}@proxy.example:3128")

    proxies.record()

    assert proxies.recorded()["HTTP_PROXY"] == f"http://DOMAIN\\me:{password}@proxy.example:3128"
    said = capsys.readouterr().out
    assert "http://proxy.example:3128" in said
    assert password not in said


def test_a_quote_in_an_address_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:it's@proxy.example")

    proxies.record()

    assert proxies.recorded()["HTTP_PROXY"] == "http://me:it%27s@proxy.example"


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A proxy of this host at the address of Docker's bridge, for which 127.0.0.2 stands here."""
    monkeypatch.setattr(engine, "ask", lambda *question: "127.0.0.2" if question[0] == "network" else "")
    with socket.create_server(("127.0.0.2", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3", "[::1]", "host.docker.internal"])
def test_a_proxy_on_this_host_is_named_by_the_address_that_containers_reach(
    host: str, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{host}:{listening}")

    proxies.record()

    assert proxies.recorded()["https_proxy"] == f"http://me:secret@127.0.0.2:{listening}"


@pytest.mark.usefixtures("listening")
def test_the_containers_name_for_this_host_stays_where_the_bridge_has_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Docker Desktop has it answered elsewhere."""
    monkeypatch.setenv("HTTP_PROXY", "http://host.docker.internal:1")

    proxies.record()

    assert proxies.recorded()["HTTP_PROXY"] == "http://host.docker.internal:1"


@pytest.mark.usefixtures("listening")
def test_one_that_listens_on_loopback_alone_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Containers that were told of it would reach nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{server.getsockname()[1]}")
        proxies.record()

    assert proxies.recorded() == {}
    said = capsys.readouterr().out
    assert "the container itself" in said
    assert "secret" not in said


# --- builds --------------------------------------------------------------------------------------------


def test_builds_get_the_proxies_by_name_so_that_no_password_is_on_a_command_line(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("BASE_IMAGE=base\nCOMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    monkeypatch.setattr(images, "built_from", lambda _: "")
    monkeypatch.setattr(images, "write_certificates", lambda: None)
    given = {}
    monkeypatch.setattr(
        images, "run_logged", lambda title, command, **rest: given.update({title: (command, rest)})
    )
    proxies.record()

    images.ensure()

    assert len(given) == 4
    for command, rest in given.values():
        assert "secret" not in " ".join(command)
        for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
            assert command[command.index(name) - 1] == "--build-arg"
        assert rest["environment"]["HTTP_PROXY"] == "http://me:secret@proxy.example:3128"
    assert not [call for call in calls(programs) if "secret" in call]
