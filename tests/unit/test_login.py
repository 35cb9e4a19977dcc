"""LOGIN: what is refused before anything starts, and what the door's container is told."""

from pathlib import Path

import pytest

from scripts import env_file, login
from scripts.console import ROOT, Failure
from scripts.preflight import report
from tests import compose_files

OIDC = """
OIDC_ISSUER=https://login.example.com/realms/data
OIDC_CLIENT_ID=dagit
OIDC_CLIENT_SECRET=abc
OIDC_ROLE_CLAIM=groups
OIDC_ROLES=viewer:everyone,operator:data team,admin:ops,admin:the.bosses
"""


def cures(env: Path, text: str) -> list[str]:
    env.write_text(text)
    return [finding.cure for finding in login.findings() if finding.cure]


@pytest.mark.parametrize(
    "text",
    ["", "LOGIN=off\n", "BIND_ADDRESS=127.0.0.5\n", "BIND_ADDRESS=[::1]\n", "BIND_ADDRESS=::1\n",
     "PUBLIC_HOST=localhost:8080,127.0.0.1\n"],
)  # fmt: skip
def test_pages_of_this_host_alone_need_no_login(env: Path, text: str) -> None:
    assert cures(env, text) == []


@pytest.mark.parametrize("opened", ["BIND_ADDRESS=0.0.0.0", "BIND_ADDRESS=::", "BIND_ADDRESS=192.0.2.7",
                                    "PUBLIC_HOST=dagit.example.com", "PUBLIC_HOST=localhost,host.lan"])  # fmt: skip
@pytest.mark.parametrize("mode", ["", "LOGIN=off\n"])
def test_pages_that_others_reach_are_refused_without_a_login(env: Path, opened: str, mode: str) -> None:
    env.write_text(f"{mode}{opened}\n")

    with pytest.raises(Failure, match=r"opens pages that nobody must log in to: set LOGIN=on"):
        report(login.findings())
    assert opened in cures(env, f"{mode}{opened}\n")[0]
    assert cures(env, f"LOGIN=on\n{opened}\n") == []


@pytest.mark.parametrize("mode", ["yes", "ON", "1"])
def test_a_word_that_is_neither_is_named(env: Path, mode: str) -> None:
    assert "is on or off" in cures(env, f"LOGIN={mode}\n")[0]


def test_an_issuer_has_all_of_its_settings(env: Path) -> None:
    assert cures(env, f"LOGIN=on\n{OIDC}") == []
    assert "OIDC_ROLES must be set too" in cures(env, "LOGIN=on\n" + OIDC.replace("OIDC_ROLES", "#"))[0]


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ("https://login.example.com/realms/data", "login.example.com", "OIDC_ISSUER"),
        ("https://login.example.com/realms/data", 'https://x"<If true>', "OIDC_ISSUER"),
        ("CLAIM=groups", "CLAIM=realm.roles", "OIDC_ROLE_CLAIM"),
        ("operator:data team", "boss:data", "OIDC_ROLES"),
        ("operator:data team", "operator:", "OIDC_ROLES"),
        ("operator:data team", "operator:a|.*", "OIDC_ROLES"),
    ],
)
def test_what_can_not_stand_in_the_doors_configuration_is_named(
    env: Path, good: str, bad: str, named: str
) -> None:
    assert named in cures(env, "LOGIN=on\n" + OIDC.replace(good, bad))[0]


@pytest.mark.parametrize(
    ("settings", "url", "s3"),
    [
        ({}, "https://127.0.0.1:3000", "https://127.0.0.1:9000"),
        ({"BIND_ADDRESS": "0.0.0.0"}, "https://127.0.0.1:3000", "https://127.0.0.1:9000"),
        ({"BIND_ADDRESS": "::1"}, "https://[::1]:3000", "https://[::1]:9000"),
        ({"PUBLIC_HOST": "a.example,b.example", "DAGIT_PORT": "443"}, "https://a.example", "https://a.example:9000"),
        ({"PUBLIC_HOST": "a.example:8443", "MINIO_PORT": "9443"}, "https://a.example:8443", "https://a.example:9443"),
    ],
)  # fmt: skip
def test_links_lead_to_where_browsers_find_the_door(settings: dict[str, str], url: str, s3: str) -> None:
    found = login.derived({"LOGIN": "on", **settings})

    assert (found["DOOR_URL"], found["DOOR_S3_URL"]) == (url, s3)


def test_the_certificate_is_for_each_name_that_dagit_has(env: Path) -> None:
    found = login.derived(
        {"LOGIN": "on", "BIND_ADDRESS": "192.0.2.7", "PUBLIC_HOST": "a.example:8443,[2001:db8::1]"}
    )

    assert found["DOOR_NAMES"].split(",") == [
        "DNS:a.example", "DNS:localhost", "IP:127.0.0.1", "IP:192.0.2.7", "IP:2001:db8::1", "IP:::1",
    ]  # fmt: skip


def test_dagit_is_told_no_secret_and_without_a_login_links_are_as_before(env: Path) -> None:
    env.write_text("LOGIN=off\nDOOR_SECRET=abc\nDOOR_URL=https://old\n")

    login.derive()

    written = env_file.read(env)
    assert written["DOOR_SECRET_SHA256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert written["DOOR_URL"] == written["DOOR_S3_URL"] == ""
    before = env.stat().st_mtime_ns
    login.derive()
    assert env.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            "curl: (60) SSL certificate problem: self-signed certificate\nMore details here: https://curl.se/docs/sslcerts.html\n",
            "curl: (60) SSL certificate problem: self-signed certificate. TLS_CA_FILE in .env names the certificates",
        ),
        ("curl: (6) Could not resolve host: login.example.com", "curl: (6) Could not resolve host: login.example.com.\n"),
        ("", "the door can ask https://login.example.com/realms/data\n"),
    ],
)  # fmt: skip
def test_make_up_says_why_the_door_can_not_ask_the_issuer(
    env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, wanted: str
) -> None:
    asked: list[str] = []

    def in_door(*command: str, given: str | None = None) -> str:
        asked.append(command[-1])
        if said:
            raise Failure(f"`docker compose exec …` failed:\n{said}")
        return ""

    monkeypatch.setattr(login, "in_door", in_door)
    env.write_text("LOGIN=on\n" + OIDC)

    login.ask_issuer()

    assert wanted in "".join(capsys.readouterr())
    assert asked == ["https://login.example.com/realms/data/.well-known/openid-configuration"]


def test_grafana_is_shown_where_its_own_links_lead() -> None:
    """The door takes the prefix away, as Grafana expects with an address that has one; its login is the door's."""
    grafana = compose_files.services("on")["grafana"]
    door = (ROOT / "docker" / "door" / "httpd.conf").read_text()

    assert grafana["environment"]["GF_SERVER_ROOT_URL"] == "${DOOR_URL:-}/grafana/"
    assert "GF_SERVER_SERVE_FROM_SUB_PATH" not in grafana["environment"]
    assert "ports" not in grafana
    assert "ProxyPass /grafana/ http://grafana:3000/ upgrade=websocket" in door
    assert set(grafana["networks"]) & set(compose_files.services("on")["door"]["networks"]) == {"monitoring"}


def test_the_door_trusts_a_companys_authority_as_all_do() -> None:
    named = [str(each) for each in compose_files.services("on")["door"]["env_file"]]

    assert any(".build/tls/" in each for each in named)
