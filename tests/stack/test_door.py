"""The door by itself, before stubs: who gets in, as whom, and who does not."""

import base64
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.conftest import free_ports
from tests.stack.door import (
    CLIENT_SECRET,
    SECRET,
    Door,
    another_door,
    authority,
    door_with_stubs,
    is_up,
    roles,
    run,
)
from tests.stack.stack import Stack
from tests.waiting import wait_until

PREFIXES = ("flower", "prometheus", "figures", "grafana")
#: What the door may take in all, its 250 open WebSockets included.
SOCKETS, MEGABYTES = 250, 60
#: Wrong passwords within a minute, after which none is looked at for the rest of it; with some seconds for the requests.
TRIES, MINUTE_SECS = 10, 80
OIDC = {"OIDC_ISSUER": "https://issuer:8443", "OIDC_CLIENT_ID": "dagit", "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_ROLE_CLAIM": "groups", "OIDC_ROLES": "viewer:everyone,operator:data,admin:ops,admin:the.bosses"}  # fmt: skip


@pytest.fixture(scope="module")
def issuer() -> int:
    """The port of the issuer on this host."""
    return int(free_ports(1)[0])


@pytest.fixture(scope="module")
def door(stack: Stack, tmp_path_factory: pytest.TempPathFactory, issuer: int) -> Iterator[Door]:
    door_port, s3_port = map(int, free_ports(2))
    folder = tmp_path_factory.mktemp("door")
    ports = (door_port, s3_port, issuer)
    with door_with_stubs(stack, folder, ports, LOG_FORMAT="json", **OIDC, **company()) as door:
        for name, role in {"vera": "viewer", "otto": "operator"}.items():
            door.make_user(name, role)
        yield door


def company() -> dict[str, str]:
    """What a container is told of TLS_CA_FILE."""
    bundle = "/tmp/dagster/tls/bundle.pem"
    text = base64.b64encode(authority().read_bytes()).decode()
    return {"DAGSTER_STACK_CA": text, "DAGSTER_STACK_CA_BUNDLE": bundle, "SSL_CERT_FILE": bundle}


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
    # When somebody who wanted a page mistypes the password
    session = door.session()
    response = session.post(
        f"{door.url}/door/login", data={"httpd_username": "vera", "httpd_password": "x"},
        headers={"Referer": f"{door.url}/runs/7"}, timeout=20,
    )  # fmt: skip

    # Then the login says so, and still knows the page
    assert response.url == f"{door.url}/door/login?wrong"
    assert "is wrong" in response.text
    assert f'value="{door.url}/runs/7"' in response.text
    assert session.get(f"{door.url}/x", timeout=20).status_code == 401


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

    def status(*options: str) -> str:
        page = f"https://{inside}:8443/x"
        return run("exec", stubs, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", *options, page)

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

    def guessed(guess: int) -> str:
        """By the form and by basic auth in turn, for whomever."""
        name = ("vera", "otto", "admin")[guess % 3]
        form = f"httpd_username={name}&httpd_password={guess}"
        if guess % 2:
            return status("-u", f"{name}:{guess}")
        return run("exec", stubs, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-d", form,
                   f"https://{inside}:8443/door/login")  # fmt: skip

    # When passwords are guessed from there
    answers = [guessed(guess) for guess in range(TRIES + 5)]

    # Then after some none is looked at, not even the right one
    assert answers == ["302", "401"] * (TRIES // 2) + ["429"] * 5
    assert status("-u", f"vera:{door.users['vera']}") == "429"
    # And the session goes on, as do all at other addresses
    assert status("-H", f"Cookie: {session}") == "200"
    assert door.get("/x", "vera").status_code == 200
    # And after a minute the right one is looked at again, although somebody goes on guessing there
    wait_until(
        lambda: (status("-u", f"vera:{door.users['vera']}"), guessed(1)), MINUTE_SECS, "vera gets in", pause=3,
        until=lambda found: found[0] == "200",
    )  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["/x", "/graphql", "/door/", "/door//login", "//door/login", "/door/%6cogin", "/door/login/x", "/door/login/", "/x/../door/login",
     "/door/./login", "https://localhost/door/login", "/door/style.css", "/door/forbidden", "/door/logout", "/flower/"],
)  # fmt: skip
def test_a_password_is_looked_at_in_the_one_place_where_wrong_ones_are_counted(door: Door, path: str) -> None:
    """Apache's form login would take one with any request."""
    form = f"httpd_username=admin&httpd_password={door.users['admin']}&httpd_location=/"
    answer = raw(
        door,
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\nConnection: close\r\nContent-Length: {len(form)}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}".encode(),
    )

    # Then it is no login: no page, and no session
    assert not is_answered(answer)
    for cookie in re.findall(rb"__Host-door=([^;]*)", answer):
        assert door.get("/x", Cookie=f"__Host-door={cookie.decode()}").status_code == 401


ODD = ["//", "/.", "/..", "/../", "/door/..//", "/door/../graphql", "/door/login/../../graphql", "/door/login/..%2f..%2fgraphql",
       "/door/style.css/../../graphql", "/door/style.css/x", "/door/style.css%00", "/door/%2e%2e/graphql", "/%2e%2e/graphql",
       "/door%2flogin", "//door/login", "/door//login/x", "/DOOR/LOGIN", "/door/login;x", "/graphql?/door/login", "/graphql%3f",
       "/_next/static/chunks/x.js", "/_next/static/../../graphql", "/flower/../graphql", "/prometheus//api", "/%66lower/",
       "/grafana/..;/", "/door/oidc/../../graphql", "/door/forbidden/x", "/door/issuer/x", "/door/logout/../x",
       "/\\graphql", "/graphql#/door/login", "*", "http://dagit:3000/graphql", "https://evil.example/door/login/../x"]  # fmt: skip


def raw(door: Door, request: bytes, port: int | None = None) -> bytes:
    """All that the door answers to these very bytes."""
    context = ssl.create_default_context(cafile=str(door.certificate))
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", port or door.port), 20), server_hostname="localhost"
    ) as connection:
        connection.sendall(request)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer


def is_answered(text: bytes) -> bool:
    """Whether a page behind the door was asked: each answers with what it was asked, as JSON."""
    return b'"port"' in text


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "PROPFIND", "TRACE", "CONNECT"]
)
def test_no_method_and_no_odd_path_gets_by_the_login(door: Door, method: str) -> None:
    for path in ODD:
        request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\nConnection: close\r\n\r\n"
        answer = raw(door, request.encode())
        assert not is_answered(answer), (path, answer)
        assert b" 101 " not in answer[:20], (path, answer)
        # What it is: refused, or a page of the login's own
        status = int(answer.split(b" ", 2)[1])
        assert (
            status >= 400 or b"<title>" in answer or b"Location: " in answer or method in ("HEAD", "OPTIONS")
        ), (path, answer)


@pytest.mark.parametrize(
    "host",
    [
        "dagit:3000",
        "localhost",
        "evil.example",
        "127.0.0.1:3000",
        "door:8443",
        "x\r\nX-Stack-Role: admin",
        "",
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_no_host_gets_by_the_login(door: Door, host: str, version: str) -> None:
    request = f"GET /graphql HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = raw(door, request.encode())

    assert not is_answered(answer)
    assert int(answer.split(b" ", 2)[1]) in (400, 401)


FORGED = ["X-Stack-Door", "X-Stack-User", "X-Stack-Role", "X-Stack-Address", "x_stack_role", "X-Stack-Role ", "X-Remote-User", "Remote-User",
          "REMOTE_USER", "X-Forwarded-User", "X-Auth-Request-User", "OIDC_CLAIM_groups", "OIDC-CLAIM-groups", "X-Original-URL", "X-Rewrite-URL",
          "X-HTTP-Method-Override", "X-Forwarded-Host", "Forwarded", "Proxy-Authorization", "Upgrade-Insecure-Requests"]  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_no_header_says_who_somebody_is(door: Door, name: str) -> None:
    # Without a login, and with one of a viewer's
    login = base64.b64encode(f"vera:{door.users['vera']}".encode()).decode()
    for authorization in ("", f"Authorization: Basic {login}\r\n"):
        request = f"GET /x HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\n{name}: admin\r\nConnection: {name}, close , {name}\r\n{authorization}\r\n"
        answer = raw(door, request.encode())
        if is_answered(answer):
            asked = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert authorization
            # Not by names that some programs take for the same either
            said = {key.lower().replace("_", "-"): value for key, value in asked["headers"].items()}
            assert (said["x-stack-user"], said["x-stack-role"], said["x-stack-door"]) == (
                "vera",
                "viewer",
                SECRET,
            )
        else:
            assert int(answer.split(b" ", 2)[1]) in (400, 401)


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked", "Transfer-Encoding : chunked", "Transfer-Encoding:\x0bchunked", "Content-Length: 6\r\nContent-Length: 60",
        "Content-Length: +6", "Content-Length: 6, 6", "X: y\nTransfer-Encoding: chunked", "Content-Length: 0\r\n Transfer-Encoding: chunked",
    ],
)  # fmt: skip
def test_no_request_is_smuggled_behind_another_ones(door: Door, framing: str) -> None:
    # Given a viewer's request with a body that is another request, of an admin it says
    login = base64.b64encode(f"vera:{door.users['vera']}".encode()).decode()
    inner = "GET /smuggled HTTP/1.1\r\nHost: dagit\r\nX-Stack-Role: admin\r\n\r\n"
    request = (
        f"POST /x HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\nAuthorization: Basic {login}\r\n{framing}\r\n\r\n0\r\n\r\n{inner}"
        f"GET /door/style.css HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\nConnection: close\r\n\r\n"
    )
    answer = raw(door, request.encode())

    # Then no page is asked for it: it is part of the body, or refused for lack of a login of its own
    assert b'"path": "/smuggled"' not in answer
    # And whoever comes next on the door's own connections gets their own answer
    assert door.asked("/after", "otto")["path"] == "/after"


def test_a_websocket_needs_a_login_and_comes_from_dagits_own_page(door: Door) -> None:
    for path in ("/graphql", "/door/../graphql", "//graphql", "/flower/api", "/grafana/api/live/ws"):
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{door.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
        )
        assert not first_words(door, request.encode()).startswith(b"HTTP/1.1 101"), path


def first_words(door: Door, request: bytes) -> bytes:
    """What the door answers at once: the connection may stay open for another request."""
    context = ssl.create_default_context(cafile=str(door.certificate))
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", door.port), 20), server_hostname="localhost"
    ) as connection:
        connection.sendall(request)
        return connection.recv(65536)


# --- Dagit's own files ------------------------------------------------------------------------------------


def test_dagits_files_are_kept_compressed_and_are_behind_the_login_as_all_else(door: Door) -> None:
    path = "/_next/static/chunks/main-28206b53.js"
    session = door.logged_in("vera")
    first, second = (session.get(f"{door.url}{path}", timeout=20) for _ in range(2))

    # Then browsers keep one, and the page behind the door was asked once
    assert first.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert first.headers["Content-Encoding"] == second.headers["Content-Encoding"] == "gzip"
    assert first.json() == second.json()
    assert first.json()["asked"] + 1 == door.asked("/x", "vera")["asked"]
    # And what is kept has nobody's cookie, and is for nobody who has not logged in
    assert "Set-Cookie" not in second.headers
    assert door.get(path).status_code == 401
    assert door.get(path, Cookie="__Host-door=x").status_code == 401
    # And one who can't unpack it gets it as it is
    plain = session.get(f"{door.url}{path}", headers={"Accept-Encoding": "identity"}, timeout=20)
    assert "Content-Encoding" not in plain.headers
    assert plain.json()["path"] == path


def test_nothing_else_is_kept_or_compressed(door: Door) -> None:
    session = door.logged_in("vera")
    for path in ("/x", "/_next/static/chunks/main.js.map", "/graphql"):
        first, second = (session.get(f"{door.url}{path}", timeout=20) for _ in range(2))
        assert second.json()["asked"] == first.json()["asked"] + 1
        assert "Content-Encoding" not in first.headers
        assert "immutable" not in first.headers.get("Cache-Control", "")


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


def test_the_doors_own_certificate_is_made_anew_a_month_before_it_ends(door: Door) -> None:
    def put(days: int) -> None:
        door.exec("sh", "-c", "cd /data && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=short"
                  f" -days {days} -keyout /tmp/key -out /tmp/crt 2> /dev/null && cat /tmp/crt /tmp/key > certificate.pem")  # fmt: skip

    def days_left(days: int) -> bool:
        command = f"openssl s_client -connect 127.0.0.1:8443 < /dev/null 2> /dev/null | openssl x509 -noout -checkend {days * 86400}"
        return "will not expire" in door.exec("sh", "-c", f"{command} || true")

    # Given one that ends in 31 days: it stays
    put(31)
    door.exec("certificate")
    assert "short" in door.exec("openssl", "x509", "-in", "/data/certificate.pem", "-noout", "-subject")
    # When it ends in 29
    put(29)
    door.exec("certificate")
    # Then there is one for a year, and the door serves it
    wait_until(lambda: days_left(390), 10, "the new certificate is served", pause=0.2)
    door.certificate.write_text(door.exec("openssl", "x509", "-in", "/data/certificate.pem"))
    assert door.get("/x", "vera").status_code == 200


# --- the log ----------------------------------------------------------------------------------------------


def test_each_line_of_the_log_is_an_object_whatever_was_asked(door: Door) -> None:
    # When somebody asks for odd things
    for path in (
        '/"quoted"',
        "/back\\slash",
        "/%22%5c%0a",
        "/jörg",
        "/%ff%fe",
        "/a%09b",
        "/x?token=secret",
        "/\\x41",
    ):
        raw(door, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    raw(door, b'GET /"x HTTP/9\r\nHost: "\\\x01\xff\r\n\r\n')
    for name in ('"', "\\", "a\x01b", "jörg", "\\x41"):
        door.session().get(f"{door.url}/named", headers=basic(name), timeout=20)
    # Then each line is JSON, with what a log collector needs, and no query
    lines = [line for line in door.logs().splitlines() if line.strip()]
    records = [json.loads(line) for line in lines]
    assert {"timestamp", "level", "service", "message"} <= set.intersection(*map(set, records))
    assert {record["service"] for record in records} == {"door"}
    assert any(record["message"] == "GET /named" and record["status"] == "401" for record in records)
    assert not any("secret" in line for line in lines)


def basic(name: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:x'.encode()).decode()}"}


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


@pytest.mark.parametrize(
    ("issuer_url", "trusted"), [("https://issuer:8444", True), ("https://issuer:8443", False)]
)
def test_an_issuer_whose_certificate_nobody_trusts_is_told_with_the_way_to_the_reason(
    door: Door, tmp_path: Path, issuer_url: str, trusted: bool
) -> None:
    # Given a certificate of nobody's, or a company's without TLS_CA_FILE
    settings = OIDC | {"OIDC_ISSUER": issuer_url} | (company() if trusted else {})
    with another_door(door, tmp_path, **settings) as other:
        # When somebody wants to log in there
        answer = other.get("/door/oidc/login/runs/7")
        # Then the page says what is wrong, the log says why, and local users get in
        assert answer.status_code == 500
        assert f"{issuer_url} does not answer, or its certificate is not trusted" in answer.text
        assert "certificate" in other.logs()
        assert other.get("/x", "admin").status_code == 200


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


def test_it_is_small_also_with_many_open_websockets(door: Door, tmp_path: Path) -> None:
    # Given a door that has done nothing yet
    with another_door(door, tmp_path, **OIDC) as other:
        idle = other.memory
        assert idle < MEGABYTES / 2
        # When so many browsers look
        sockets = [other.websocket("admin") for _ in range(SOCKETS)]
        used = other.memory
        for each in sockets:
            each.close()

    assert used < MEGABYTES, f"{used:.1f} MB, idle {idle:.1f} MB"
