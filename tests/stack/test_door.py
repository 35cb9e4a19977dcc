"""The door by itself, before stubs: who gets in, as whom, and who does not."""

import http.client
import re
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.conftest import free_ports
from tests.stack.door import CLIENT_SECRET, SECRET, Door, door_with_stubs, is_up, roles, run
from tests.stack.stack import Stack
from tests.waiting import wait_until

PREFIXES = ("flower", "prometheus", "figures", "grafana")
#: What the door may take in all, its 250 open WebSockets included.
SOCKETS, MEGABYTES = 250, 60
#: Wrong passwords within a minute, after which none is looked at.
TRIES = 10
OIDC = {"OIDC_ISSUER": "http://issuer:8080", "OIDC_CLIENT_ID": "dagit", "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_ROLE_CLAIM": "groups", "OIDC_ROLES": "viewer:everyone,operator:data,admin:ops,admin:the.bosses"}  # fmt: skip


@pytest.fixture(scope="module")
def issuer() -> int:
    """The port of the issuer on this host."""
    return int(free_ports(1)[0])


@pytest.fixture(scope="module")
def door(stack: Stack, tmp_path_factory: pytest.TempPathFactory, issuer: int) -> Iterator[Door]:
    door_port, s3_port = map(int, free_ports(2))
    with door_with_stubs(
        stack, tmp_path_factory.mktemp("door"), (door_port, s3_port, issuer), **OIDC
    ) as door:
        for name, role in {"vera": "viewer", "otto": "operator"}.items():
            door.make_user(name, role)
        yield door


# --- who gets in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/graphql", "/server_info", "/runs/1", "/door/", *(f"/{each}/" for each in PREFIXES)]
)
def test_nothing_answers_without_a_login(door: Door, path: str) -> None:
    response = door.get(path, Accept="text/html")

    assert response.status_code == 401
    assert "httpd_password" in response.text
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(("user", "role"), [("vera", "viewer"), ("otto", "operator"), ("admin", "admin")])
def test_a_script_gets_in_by_basic_auth_as_who_it_is(door: Door, user: str, role: str) -> None:
    asked = door.asked("/graphql?a=%2F", user)

    assert roles(asked) == (user, role)
    assert asked["headers"]["X-Stack-Door"] == SECRET
    assert asked["headers"]["X-Stack-Address"]
    assert asked["path"] == "/graphql?a=%2F"
    assert asked["headers"]["Host"] == f"127.0.0.1:{door.port}"


def test_a_form_makes_a_session_whose_cookie_no_page_reads_and_no_other_site_sends(door: Door) -> None:
    # When somebody logs in who wanted another page first
    session = door.session()
    wanted = session.get(f"{door.url}/runs/7?tab=1", timeout=20)
    assert 'value="/runs/7?tab=1"' in wanted.text
    form = {"httpd_username": "vera", "httpd_password": door.users["vera"], "httpd_location": "/runs/7?tab=1"}
    began = time.monotonic()
    response = session.post(f"{door.url}/door/login", data=form, timeout=20)

    # Then that page is there, in under a second
    assert roles(response.json()) == ("vera", "viewer")
    assert response.json()["path"] == "/runs/7?tab=1"
    assert time.monotonic() - began < 1
    # And the cookie is for this very host, TLS, no script and no other site; no page behind the door sees it
    (cookie,) = response.history[0].headers["Set-Cookie"].split("\n")
    assert re.fullmatch(r"__Host-door=[^;]{40,};Max-Age=43200;path=/;HttpOnly;Secure;SameSite=Lax", cookie)
    assert door.users["vera"] not in cookie
    assert "__Host" not in response.json()["headers"].get("Cookie", "")
    assert "Authorization" not in response.json()["headers"]


def test_a_wrong_password_is_told_and_makes_no_session(door: Door) -> None:
    session = door.session()
    response = session.post(
        f"{door.url}/door/login", data={"httpd_username": "vera", "httpd_password": "x"}, timeout=20
    )

    assert response.status_code == 401
    assert "is wrong" in response.text
    assert session.get(f"{door.url}/x", timeout=20).status_code == 401


@pytest.mark.parametrize(
    ("referer", "wanted"),
    [
        ("/runs/x?a=b&c=%3Cd", "/runs/x?a=b&c=%3Cd"), ("/door/login", None), ("/x'><b", None),
    ],
)  # fmt: skip
def test_after_a_wrong_password_the_page_is_still_known(door: Door, referer: str, wanted: str | None) -> None:
    headers = {"Referer": f"{door.url}{referer}"} if referer else {}
    form = {"httpd_username": "vera", "httpd_password": "x"}
    page = door.session().post(f"{door.url}/door/login", data=form, headers=headers, timeout=20).text

    location = re.findall(r"name='httpd_location' type='hidden' value='([^']*)'", page)
    assert location == [f"{door.url}{wanted}" if wanted else "/"]
    assert "<b" not in page.replace("<body", "").replace("<button", "")


@pytest.mark.parametrize("wanted", ["//evil.example/", "/\\evil.example/"])
def test_no_link_leads_to_another_site_after_the_login(door: Door, wanted: str) -> None:
    context = ssl.create_default_context(cafile=str(door.certificate))
    connection = http.client.HTTPSConnection("127.0.0.1", door.port, context=context, timeout=20)
    with closing(connection):
        connection.request("GET", wanted)
        page = connection.getresponse().read().decode()

    assert 'name="httpd_location" type="hidden" value="/"' in page


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_no_page_of_another_site_logs_somebody_in(door: Door, headers: dict[str, str]) -> None:
    form = {"httpd_username": "vera", "httpd_password": door.users["vera"]}
    response = door.session().post(f"{door.url}/door/login", data=form, headers=headers, timeout=20)

    assert response.status_code == 403
    assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("path", ["/", "/x", "/graphql", "/door/", "/door/logout", "/flower/x"])
def test_only_the_login_takes_a_password(door: Door, path: str) -> None:
    """Elsewhere nobody counts guesses, and a page of another site could log somebody in."""
    form = {"httpd_username": "vera", "httpd_password": door.users["vera"]}
    session = door.session()
    response = session.post(f"{door.url}{path}", data=form, timeout=20, allow_redirects=False)

    assert response.status_code == (307 if path == "/door/logout" else 401)
    assert session.get(f"{door.url}/x", timeout=20).status_code == 401


def test_a_logout_ends_the_session(door: Door) -> None:
    session = door.logged_in("vera")
    assert session.get(f"{door.url}/x", timeout=20).status_code == 200

    response = session.get(f"{door.url}/door/logout", timeout=20, allow_redirects=False)
    expires = re.search(r"Max-Age=(\d+)", response.headers["Set-Cookie"])
    assert expires
    assert int(expires[1]) <= 1
    session.cookies.clear()
    session.cookies.set("__Host-door", re.findall(r"__Host-door=([^;]*)", response.headers["Set-Cookie"])[0])
    assert session.get(f"{door.url}/x", timeout=20).status_code == 401


def test_who_guesses_waits_and_who_is_logged_in_does_not_notice(door: Door) -> None:
    # Given somebody at another address, who is logged in
    inside = run(
        "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", door.container
    ).strip()
    stubs = door.container.replace("-alone", "-stubs")

    def status(*options: str, path: str = "/x") -> str:
        page = f"https://{inside}:8443{path}"
        return run("exec", stubs, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", *options, page)

    def guessed(password: int) -> str:
        """By the form, or as scripts do."""
        if password % 2:
            return status("-d", f"httpd_username=vera&httpd_password={password}", path="/door/login")
        return status("-u", f"vera:{password}")

    login = f"httpd_username=vera&httpd_password={door.users['vera']}"
    cookie = run(
        "exec",
        stubs,
        "curl",
        "-sk",
        "-o",
        "/dev/null",
        "-D",
        "-",
        "-d",
        login,
        f"https://{inside}:8443/door/login",
    )
    session = re.findall(r"Set-Cookie: ([^;]*)", cookie)[0]

    # When passwords are guessed from there
    answers = [guessed(password) for password in range(TRIES + 5)]

    # Then after some none is looked at, not even the right one
    assert answers == ["401"] * TRIES + ["429"] * 5
    assert status("-u", f"vera:{door.users['vera']}") == "429"
    # And the session goes on, as do all at other addresses
    assert status("-H", f"Cookie: {session}") == "200"
    assert door.get("/x", "vera").status_code == 200


# --- as whom -------------------------------------------------------------------------------------------


def test_nobody_says_from_outside_who_they_are(door: Door) -> None:
    forged = {"X-Stack-User": "admin", "X-Stack-Role": "admin", "X-Stack-Address": "1.2.3.4", "X-Stack-Door": SECRET,
              "x-stack-role": "admin", "X-Forwarded-For": "1.2.3.4"}  # fmt: skip

    assert door.get("/x", **forged).status_code == 401
    headers = door.asked("/x", "vera", **forged)["headers"]
    assert (headers["X-Stack-User"], headers["X-Stack-Role"]) == ("vera", "viewer")
    assert "1.2.3.4" not in headers.values()


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("user", ["vera", "otto"])
def test_the_other_pages_are_for_admins(door: Door, prefix: str, user: str) -> None:
    assert door.get(f"/{prefix}/", user).status_code == 403
    assert door.get(f"/{prefix}", user).status_code in (301, 302, 403)
    assert door.get(f"/%{ord(prefix[0]):x}{prefix[1:]}/", user).status_code == 403
    assert door.get(f"/x/../{prefix}/", user).status_code == 403


@pytest.mark.parametrize(
    ("path", "port", "asked"),
    [
        ("/flower/tasks?a=1", 5555, "/flower/tasks?a=1"),
        ("/prometheus/api/v1/query", 9090, "/api/v1/query"),
        ("/figures/?hours=6", 9808, "/?hours=6"),
        ("/grafana/d/1", 3000, "/d/1"),
    ],
)
def test_an_admin_reaches_each_page_with_that_pages_login_and_not_with_dagits_secret(
    door: Door, path: str, port: int, asked: str
) -> None:
    found = door.asked(path, "admin")

    assert (found["port"], found["path"]) == (port, asked)
    assert "X-Stack-Door" not in found["headers"]
    logins = {"/flower": "Basic YWRtaW46Zmxvd2Vycw==", "/grafana": "Basic YWRtaW46Z3JhcGhz"}
    assert found["headers"].get("Authorization") == logins.get(path[: path.index("/", 1)])


def test_no_page_of_another_site_asks_an_admins_page(door: Door) -> None:
    headers = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
    assert door.get("/prometheus/api/v1/query", "admin", **headers).status_code == 403
    assert (
        door.get("/prometheus/graph", "admin", **headers | {"Sec-Fetch-Mode": "navigate"}).status_code == 200
    )


def test_the_page_of_the_door_says_who_one_is_and_names_the_pages(door: Door) -> None:
    assert "otto, operator" in door.get("/door/", "otto").text
    assert "/flower/" not in door.get("/door/", "otto").text
    assert "/flower/" in door.get("/door/", "admin").text


def test_signed_links_need_no_login_and_stay_as_they_were_signed(door: Door) -> None:
    link = f"https://127.0.0.1:{door.s3_port}/dagster/runs%2F1/a%20b?X-Amz-Signature=1"
    asked = door.session().get(link, timeout=20).json()

    assert asked["path"] == "/dagster/runs%2F1/a%20b?X-Amz-Signature=1"
    assert asked["headers"]["Host"] == f"127.0.0.1:{door.s3_port}"


# --- when a user changes --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["password", "role", "removal"])
def test_a_change_ends_sessions_and_open_websockets_within_seconds(door: Door, change: str) -> None:
    # Given a user with a session and an open WebSocket
    name = f"user-{change}"
    door.make_user(name, "operator")
    session = door.logged_in(name)
    websocket = door.websocket(name)

    # When the user changes
    match change:
        case "password":
            door.make_user(name, "operator", "another password")
        case "role":
            door.make_user(name, "viewer")
        case _:
            door.exec("user", "remove", name)

    # Then the session is none, or has the new role; on a new connection, as a browser makes one
    session.close()
    response = session.get(f"{door.url}/x", timeout=20)
    if change == "role":
        assert roles(response.json()) == (name, "viewer")
    else:
        assert response.status_code == 401
    # And the WebSocket ends
    began = time.monotonic()
    with websocket:
        websocket.settimeout(20)
        while websocket.recv(100):
            pass
    assert time.monotonic() - began < 10
    # And all others go on
    assert door.get("/x", "vera").status_code == 200


def test_a_request_under_way_survives_the_change_of_a_user(door: Door) -> None:
    door.make_user("passing", "viewer")
    with ThreadPoolExecutor() as pool:
        # Given a request that lasts
        answer = pool.submit(door.get, "/slow", "vera")
        wait_until(lambda: door.asked("/x", "vera")["slow"], 5, "it is under way", pause=0.1)
        # When a user goes meanwhile
        door.exec("user", "remove", "passing")
        assert not answer.done()

        assert answer.result().status_code == 200


def test_sessions_and_users_survive_a_restart_and_a_crash(door: Door) -> None:
    session = door.logged_in("otto")

    run("kill", "--signal", "KILL", door.container)
    run("start", door.container)

    wait_until(lambda: is_up(door), 20, "the door is back", pause=0.2)
    assert session.get(f"{door.url}/x", timeout=20).status_code == 200
    assert "otto operator" in door.exec("user", "list")


# --- the certificate --------------------------------------------------------------------------------------


def test_ones_own_certificate_is_taken_and_a_wrong_key_is_not(door: Door, tmp_path: Path) -> None:
    def made(name: str) -> tuple[str, str]:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                   "-subj", f"/CN={name}", "-keyout", f"/tmp/{name}.key", "-out", f"/tmp/{name}.crt"]  # fmt: skip
        door.exec(*command)
        return door.exec("cat", f"/tmp/{name}.crt"), door.exec("cat", f"/tmp/{name}.key")

    def served() -> str:
        command = (
            "openssl s_client -connect 127.0.0.1:8443 < /dev/null 2> /dev/null | openssl x509 -noout -subject"
        )
        return door.exec("sh", "-c", command)

    (mine, key), (other, _) = made("mine"), made("other")
    with pytest.raises(AssertionError, match="the key is not that of the certificate"):
        door.exec("certificate", "own", given=other + key)
    assert "mine" not in served()
    door.exec("certificate", "own", given=mine + key)
    wait_until(lambda: "mine" in served(), 10, "the own certificate is served", pause=0.2)
    door.exec("certificate", "generated")
    wait_until(lambda: "mine" not in served(), 10, "the generated one is served", pause=0.2)
    door.certificate.write_text(door.exec("openssl", "x509", "-in", "/data/certificate.pem"))
    assert door.get("/x", "vera").status_code == 200


# --- OpenID Connect --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        ("everyone", "viewer"),
        ("everyone,data", "operator"),
        ("ops,everyone", "admin"),
        ("the.bosses", "admin"),
    ],
)
def test_the_issuers_claim_is_the_role(door: Door, issuer: int, groups: str, role: str) -> None:
    requests.get(f"http://127.0.0.1:{issuer}/become", params={"groups": groups}, timeout=20)
    session = door.session()

    asked = session.get(f"{door.url}/door/oidc/login/runs/7", timeout=20).json()

    assert roles(asked) == ("oidc:eva", role)
    assert asked["path"] == "/runs/7"
    assert "__Host" not in asked["headers"].get("Cookie", "")
    assert session.get(f"{door.url}/flower/", timeout=20).status_code == (200 if role == "admin" else 403)
    cookie = next(each for each in session.cookies if each.name.startswith("__Host-door-oidc"))
    assert cookie.secure
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") in ("Lax", "Strict")


@pytest.mark.parametrize("groups", ["others", "everyone-else", "the-bosses", "admin"])
def test_who_has_no_such_claim_sees_nothing(door: Door, issuer: int, groups: str) -> None:
    requests.get(f"http://127.0.0.1:{issuer}/become", params={"groups": groups}, timeout=20)

    assert door.session().get(f"{door.url}/door/oidc/login/", timeout=20).status_code == 403


def test_a_local_login_goes_before_the_issuers(door: Door, issuer: int) -> None:
    requests.get(f"http://127.0.0.1:{issuer}/become", params={"groups": "everyone"}, timeout=20)
    session = door.session()
    session.get(f"{door.url}/door/oidc/login/", timeout=20)
    form = {"httpd_username": "admin", "httpd_password": door.users["admin"]}

    assert roles(session.post(f"{door.url}/door/login", data=form, timeout=20).json()) == ("admin", "admin")


def test_a_logout_ends_the_issuers_session_too(door: Door, issuer: int) -> None:
    requests.get(f"http://127.0.0.1:{issuer}/become", params={"groups": "everyone"}, timeout=20)
    session = door.session()
    session.get(f"{door.url}/door/oidc/login/", timeout=20)

    assert "httpd_password" in session.get(f"{door.url}/door/logout", timeout=20).text
    assert session.get(f"{door.url}/x", timeout=20, allow_redirects=False).status_code == 401


# --- what it costs ---------------------------------------------------------------------------------------


def test_it_is_small_also_with_many_open_websockets(door: Door) -> None:
    # Given a door that has done nothing yet
    run("restart", door.container)
    wait_until(lambda: is_up(door), 20, "the door is back", pause=0.2)
    idle = door.memory
    assert idle < MEGABYTES / 2
    # When so many browsers look
    sockets = [door.websocket("vera") for _ in range(SOCKETS)]
    used = door.memory
    for each in sockets:
        each.close()

    assert used < MEGABYTES, f"{used:.1f} MB, idle {idle:.1f} MB"
