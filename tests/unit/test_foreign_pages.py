"""What a page of another site makes a browser send to Dagit, against the real one: every way of GraphQL over HTTP and
WebSocket. Nothing of it is executed, and what people and scripts send works as before."""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from dagster_graphql import DagsterGraphQLClient
from dagster_graphql.cli import execute_query_against_remote
from dagster_webserver import cli
from starlette.applications import Starlette
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dagster_stack.own_names import OwnNames
from dagster_stack.services import webserver
from dagster_stack.services.foreign_pages import ForeignPages

Headers = Mapping[str, str] | list[tuple[str, str]]

#: Changes something at once, and what it changed is seen by LIMITS.
MUTATION = 'mutation { setConcurrencyLimit(concurrencyKey: "evil", limit: 1) { __typename } }'
LIMITS = "{ instance { concurrencyLimits { concurrencyKey } } }"
QUERY = "{ version }"
JSON = {"Content-Type": "application/json"}
FOREIGN = "https://evil.example"
#: A tab that a link of another site opened.
VISIT = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()


class Client:
    """Sends exactly these headers, so that it can be what a browser, a script or nobody would send."""

    def __init__(self, url: str) -> None:
        self.netloc = urlsplit(url).netloc
        self.port = urlsplit(url).port

    def send(
        self,
        method: str,
        target: str,
        headers: Headers | None = None,
        body: str | None = None,
        host: str | None = "",
    ) -> Answer:
        """`host`: "" for the right one, None for none at all."""
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        if host is not None:
            connection.putheader("Host", host or self.netloc)
        for name, value in headers.items() if isinstance(headers, Mapping) else headers or []:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body.encode())))
        connection.endheaders(body.encode() if body is not None else None)
        try:
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def ask(self, query: str, headers: Mapping[str, str] | None = None, host: str | None = "") -> Answer:
        """GraphQL as it should be sent."""
        body = json.dumps({"query": query})
        return self.send("POST", "/graphql", {**JSON, **(headers or {})}, body, host)


@pytest.fixture(scope="module")
def client(dagit_url: str) -> Client:
    return Client(dagit_url)


@pytest.fixture(autouse=True)
def _nothing_was_changed(client: Client) -> Iterator[None]:
    yield
    assert json.loads(client.ask(LIMITS).text)["data"]["instance"]["concurrencyLimits"] == []


def in_address(query: str) -> str:
    return f"/graphql?query={quote(query)}"


# --- changes are made by POST with application/json --------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        in_address(MUTATION),
        in_address(
            "mutation M { ...change } fragment change on Mutation" + MUTATION.removeprefix("mutation")
        ),
        in_address(f"query Q {QUERY} mutation M {MUTATION.removeprefix('mutation')}") + "&operationName=M",
        in_address(f"# {QUERY}\n,,,\ufeff{MUTATION}"),
        in_address(QUERY) + "&query=" + quote(MUTATION),
        "/graphql?query=" + quote(MUTATION) + "&query=" + quote(QUERY),
        "/graphql?" + "".join(f"%{ord(letter):02x}" for letter in "query") + "=" + quote(MUTATION),
        "/graphql?query=" + quote(MUTATION).replace("%20", "+"),
        in_address(MUTATION)
        + "&variables=%7B%7D&extensions=%7B%22persistedQuery%22%3A%7B%22version%22%3A1%7D%7D",
        in_address('subscription { pipelineRunLogs(runId: "x") { __typename } }'),
        # As deep as the parser goes
        in_address("mutation {" + "a {" * 196 + "a(b: [[[1]]])" + "}" * 197),
        in_address("mutation { a(b: " + "[" * 195 + "]" * 195 + ") }"),
        "/graphql/?query=" + quote(MUTATION),
        "//graphql?query=" + quote(MUTATION),
        "/%67raphql?query=" + quote(MUTATION),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_address_changes_nothing(client: Client, method: str, target: str) -> None:
    # When a mutation comes in an address, which any link, image or script of any page can be
    for headers in ({}, {"Accept": "text/html"}, JSON, VISIT):
        answer = client.send(method, target, headers)
        # Then it is refused
        assert answer.status == 403, answer.text
        assert method == "HEAD" or "A mutation is taken by POST" in answer.text


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; application/json",
        "text/plain;charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/graphql",
        "application/jsonp",
        "application/json-patch+json",
        "application/json, text/plain",
        "",
    ],
)
def test_a_content_type_that_any_page_can_send_is_refused(client: Client, kind: str) -> None:
    # When a mutation comes in a body, an address, or both, of such a type
    bodies = [json.dumps({"query": MUTATION}), MUTATION, f"query={quote(MUTATION)}"]
    for target in ("/graphql", in_address(MUTATION), "/graphql?x=1"):
        for body in bodies:
            answer = client.send("POST", target, {"Content-Type": kind}, body)
            # Then it is refused, with the cure
            assert answer.status == 403
            assert "application/json" in json.loads(answer.text)["errors"][0]["message"]


@pytest.mark.parametrize("first", ["text/plain", "application/json", "application/graphql"])
def test_two_content_types_are_none(client: Client, first: str) -> None:
    headers = [("Content-Type", first), ("Content-Type", "application/json")]
    assert client.send("POST", "/graphql", headers, json.dumps({"query": MUTATION})).status == 403


def test_a_multipart_upload_of_operations_is_refused(client: Client) -> None:
    # Given a request as GraphQL's specification for uploads has it
    part = f'--b\r\nContent-Disposition: form-data; name="operations"\r\n\r\n{json.dumps({"query": MUTATION})}\r\n--b--\r\n'
    # Then it is no way in
    assert (
        client.send("POST", "/graphql", {"Content-Type": "multipart/form-data; boundary=b"}, part).status
        == 403
    )


@pytest.mark.parametrize(
    "kind", [None, "application/json", "Application/JSON", "application/json; charset=utf-8"]
)
def test_a_post_does_not_bring_its_mutation_in_the_address(client: Client, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for body in (None, "{}"):
        assert client.send("POST", in_address(MUTATION), headers, body).status == 403


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MUTATE"])
def test_other_methods_change_nothing(client: Client, method: str) -> None:
    for headers in ({}, JSON, {"Content-Type": "text/plain"}):
        answer = client.send(method, in_address(MUTATION), headers, json.dumps({"query": MUTATION}))
        assert answer.status in (400, 403, 405)


def test_a_batch_executes_nothing(client: Client) -> None:
    assert client.send("POST", "/graphql", JSON, json.dumps([{"query": MUTATION}])).status >= 400


@pytest.mark.parametrize("report", ["materialization", "check", "observation"])
def test_reports_of_assets_are_taken_from_no_page(client: Client, report: str) -> None:
    target = f"/report_asset_{report}/evil?passed=true&check_name=c"
    # When a page reports, with what a form or a script without permission can send
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
        assert client.send("POST", target, {"Content-Type": kind}, "{}").status == 403
    # Then neither that nor a request without any body is taken
    for headers in ({"Origin": FOREIGN}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}):
        assert client.send("POST", target, headers).status == 403
        assert client.send("POST", target, {**headers, **JSON}, "{}").status == 403


# --- pages of other sites ----------------------------------------------------------------------------------------


def origins(client: Client) -> list[str]:
    """Of pages that are not Dagit's, whatever they share with it."""
    return [
        FOREIGN, "null", "file://", "", "http://", f"chrome-extension://{client.netloc}", f"ftp://{client.netloc}",
        "http://127.0.0.1", "http://127.0.0.1:1", f"http://localhost:{client.port}", f"http://[::1]:{client.port}",
        f"http://{client.netloc}.evil.example", f"http://evil.example:{client.port}", f"{client.netloc}",
        f"http://{client.netloc}@evil.example", f"http://evil.example@{client.netloc}", f"http://{client.netloc}/",
        f"http://{client.netloc} {FOREIGN}", "https://dagit.example.com.evil.example", "http://dagit.example.com:8080",
        f"http://192.0.2.7:{client.port}", f"http://0.0.0.0:{client.port}",
    ]  # fmt: skip


def test_a_foreign_origin_is_refused_whatever_it_asks(client: Client) -> None:
    for origin in origins(client):
        for answer in (
            client.ask(MUTATION, {"Origin": origin}),
            client.ask(QUERY, {"Origin": origin}),
            client.send("GET", in_address(QUERY), {"Origin": origin}),
            client.send("GET", "/", {"Origin": origin}),
            client.send("GET", "/", {"Origin": origin, **VISIT}),
            client.send("OPTIONS", "/graphql", {"Origin": origin, "Access-Control-Request-Method": "POST"}),
        ):
            # Then it gets 403, a sentence with the cure, and no permission to read that
            assert answer.status == 403, origin
            assert "PUBLIC_HOST in .env, with LOGIN=on" in answer.text
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_one_own_origin_beside_a_foreign_one_does_not_help(client: Client) -> None:
    own = ("Origin", f"http://{client.netloc}")
    body = json.dumps({"query": MUTATION})
    for two in ([own, ("Origin", FOREIGN)], [("Origin", FOREIGN), own]):
        assert client.send("POST", "/graphql", [*JSON.items(), *two], body).status == 403
    sites = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")]
    for pair in (sites, sites[::-1]):
        assert client.send("POST", "/graphql", [*JSON.items(), *pair], body).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "cross-origin", "same-origin, cross-site", ""])
def test_a_page_of_another_site_or_port_is_refused(client: Client, site: str) -> None:
    # Given a browser that says where a request comes from, as it does of images and frames
    for kind in ("image", "script", "iframe", "frame", "object", "embed", "empty"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": kind}
        for target in ("/", "/server_info", in_address(QUERY), "/logs/x/out", "/download_debug/x"):
            assert client.send("GET", target, headers).status == 403
    # And a form that fills a tab
    assert client.ask(MUTATION, {**VISIT, "Sec-Fetch-Site": site}).status == 403


def test_a_link_of_another_site_opens_dagit(client: Client) -> None:
    assert "<html" in client.send("GET", "/runs", {**VISIT, "Accept": "text/html"}).text


@pytest.mark.parametrize(
    "target", ["/", "/runs", "/server_info", "/graphql?query={version}", "/favicon.svg", "/nothing"]
)
def test_no_answer_can_be_framed_or_read_by_another_site(client: Client, target: str) -> None:
    answer = client.send("GET", target)
    policies = answer.headers.get_all("Content-Security-Policy")
    assert (policies or [""])[-1] == "frame-ancestors 'self'"
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# --- foreign hosts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:3000", "127.0.0.1.evil.example", "localhost.evil.example", "evillocalhost",
        "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1,evil.example", "127.0.0.1/", "0.0.0.0:3000",
        "127.0.0.1:3000:3000", "127.0.0.1:port", "[::1", "::1", "[::]", "[::1]evil.example", "192.0.2.8", "dagit..",
        "sub.dagit.example.com", "com", "dagit.dagster_outbound", "localhost\t.evil.example", "\u00ef", None,
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused(client: Client, host: str | None) -> None:
    # Given a name that somebody else's DNS server gives this host's address (DNS rebinding): such a page is of the
    # same origin to the browser
    own = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"} if host and host.isascii() else {}
    for answer in (
        client.ask(MUTATION, own, host=host),
        client.send("GET", "/", own, host=host),
        client.send(
            "GET", "/server_info", {"X-Forwarded-Host": "127.0.0.1", "Forwarded": "host=127.0.0.1"}, host=host
        ),
    ):
        # Then nothing is served, and the sentence says what to do when it was meant
        assert answer.status == 403
        assert "PUBLIC_HOST in .env, with LOGIN=on" in answer.text
        assert "make up" in answer.text


def test_two_hosts_are_none(client: Client) -> None:
    for second in ("evil.example", client.netloc):
        assert client.send("GET", "/server_info", {"Host": second}).status in (400, 403)


def test_a_request_of_http_1_0_without_a_host_is_refused(client: Client) -> None:
    connection = http.client.HTTPConnection(client.netloc, timeout=30)
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
    connection.putrequest("GET", "/server_info", skip_host=True)
    connection.endheaders()
    assert connection.getresponse().status == 403


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST:1", "localhost.", "localhost:", "[::1]:3000", "[0:0:0:0:0:0:0:1]",
        "dagit:3000", "dagit", "dagit.example.com", "Dagit.Example.COM:8443", "dagit.example.com.", "192.0.2.7:3000",
    ],
)  # fmt: skip
def test_the_stacks_names_are_served_under_any_port(client: Client, host: str) -> None:
    assert client.send("GET", "/server_info", host=host).status == 200


# --- WebSockets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["graphql-ws", "graphql-transport-ws"])
def test_a_foreign_page_opens_no_websocket(client: Client, protocol: str) -> None:
    for headers in (
        *({"Origin": origin} for origin in origins(client)),
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": f"http://{client.netloc}"},
        # A handshake is no visit
        VISIT,
    ):
        # When its script opens Dagit's socket
        with pytest.raises(InvalidStatus) as refused, socket(client, protocol, headers):
            pass
        # Then the handshake is answered with 403 and a reason
        assert refused.value.response.status_code == 403
        assert b"Dagit" in (refused.value.response.body or b"")


def test_refusals_do_not_fill_the_log(client: Client, dagit_home: Path) -> None:
    # Given a page that tries again and again
    log = dagit_home / "webserver.log"
    before = len(log.read_text().splitlines())
    for _ in range(20):
        assert client.send("GET", "/", {"Origin": FOREIGN}).status == 403
        with pytest.raises(InvalidStatus), socket(client, "graphql-ws", {"Origin": FOREIGN}):
            pass
    # Then a line in 10 s says so, with the reason
    said = log.read_text().splitlines()
    assert len(said) - before <= 2, said[before:]
    assert [line for line in said if "action=http.refused" in line and "a request was refused: " in line]


def test_a_socket_under_a_foreign_name_is_refused(client: Client) -> None:
    # Given a name that leads here, which only the Host header tells
    raw = (
        f"GET /graphql HTTP/1.1\r\nHost: evil.example:{client.port}\r\nOrigin: http://evil.example:{client.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: graphql-ws\r\n\r\n"
    )
    connection = http.client.HTTPConnection(client.netloc, timeout=30)
    connection.connect()
    connection.sock.sendall(raw.encode())
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 403 ")
    connection.close()


@pytest.mark.parametrize("origin", [None, "http://{netloc}"])
def test_dagits_page_and_scripts_open_the_socket_which_changes_nothing(
    client: Client, origin: str | None
) -> None:
    headers = (
        {"Origin": origin.format(netloc=client.netloc), "Sec-Fetch-Site": "same-origin"} if origin else {}
    )
    with socket(client, "graphql-ws", headers) as opened:
        # Given that it works
        opened.send(json.dumps({"type": "connection_init"}))
        assert json.loads(opened.recv(30)) == {"type": "connection_ack"}
        # When a mutation comes over it, alone and as one of several operations
        for number, query in enumerate((MUTATION, f"query Q {QUERY} {MUTATION}")):
            payload = {"query": query, "operationName": None, "operation_name": None}
            opened.send(json.dumps({"type": "start", "id": str(number), "payload": payload}))
            # Then it is an error
            assert json.loads(opened.recv(30))["type"] == "error"


def socket(client: Client, protocol: str, headers: Mapping[str, str]) -> Any:
    return connect(
        f"ws://{client.netloc}/graphql", subprotocols=[protocol], additional_headers=headers, proxy=None,  # type: ignore[list-item]
    )  # fmt: skip


# --- what works as before ----------------------------------------------------------------------------------------


def test_dagits_own_page_may_do_all(client: Client) -> None:
    headers = {"Origin": f"http://{client.netloc}", "Sec-Fetch-Site": "same-origin"}
    assert "data" in json.loads(client.ask(QUERY, headers).text)
    assert client.ask("mutation { setNuxSeen }", headers).status == 200


@pytest.mark.parametrize("host", ["localhost:8080", "[::1]:8080", "dagit.example.com", "192.0.2.7:3000"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_under_any_of_the_names_may_do_all(client: Client, host: str, scheme: str) -> None:
    assert client.ask("mutation { setNuxSeen }", {"Origin": f"{scheme}://{host}"}, host=host).status == 200


def test_a_proxy_may_pass_on_another_host_than_the_browser_used(client: Client) -> None:
    # Given a proxy that makes each request one to its upstream, as nginx does unless it is told
    page = {"Origin": "https://dagit.example.com", "Sec-Fetch-Site": "same-origin"}
    assert client.ask("mutation { setNuxSeen }", page).status == 200
    with socket(client, "graphql-ws", page):
        pass
    # Then another port of that name is still another page
    assert client.ask(MUTATION, {"Origin": "https://dagit.example.com:8080"}).status == 403
    assert (
        client.ask(MUTATION, {"Origin": "http://dagit.example.com"}, host="dagit.example.com:3000").status
        == 403
    )


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/json ; x=y"]
)
def test_scripts_send_json_with_any_parameters(client: Client, kind: str) -> None:
    answer = client.send("POST", "/graphql", {"Content-Type": kind}, json.dumps({"query": QUERY}))
    # 400: Dagster itself reads only the lower-case form
    assert answer.status == (200 if kind.islower() else 400)


def test_queries_in_an_address_are_answered(client: Client) -> None:
    for target in (
        in_address(QUERY),
        in_address(f"query A {QUERY} query B {QUERY}") + "&operationName=B",
        in_address("query A { ...v } fragment v on Query { version }"),
    ):
        answer = client.send("GET", target)
        assert json.loads(answer.text)["data"]["version"]


def test_what_is_no_graphql_is_dagsters_to_explain(client: Client) -> None:
    answer = client.send("GET", in_address("mutation {"))
    assert answer.status == 400
    assert "Syntax Error" in answer.text


def test_graphiql_opens_in_a_browser(client: Client) -> None:
    typed = {
        "Accept": "text/html",
        "Sec-Fetch-Site": "none",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert "GraphiQL" in client.send("GET", "/graphql", typed).text


@pytest.mark.filterwarnings("ignore:Using .* is deprecated:DeprecationWarning")
def test_dagsters_own_clients_work(client: Client, dagit_url: str) -> None:
    # When a run is launched by Dagster's Python client
    run_id = DagsterGraphQLClient("localhost", port_number=client.port).submit_job_execution(
        "flights", run_config={"ops": {"work": {"config": {"times": 1}}}}
    )
    # Then its command line sees it
    query = f'{{ runOrError(runId: "{run_id}") {{ __typename }} }}'
    answer = execute_query_against_remote(dagit_url, query, {})  # type: ignore[no-untyped-call]
    assert answer["data"]["runOrError"]["__typename"] == "Run"


def test_reports_of_assets_by_documented_clients_work(dagit_url: str) -> None:
    # Given the ways of Dagster's documentation: all in the address without a body, or a body of JSON
    url = f"{dagit_url}/report_asset_materialization/from/script"
    for answer in (
        requests.post(url, params={"description": "x"}, timeout=30),
        requests.post(url, json={"metadata": {"rows": 1}}, timeout=30),
        requests.request(
            "POST", f"{dagit_url}/report_asset_observation/from/script?metadata={{}}", timeout=30
        ),
    ):
        assert answer.status_code == 200, answer.text


# --- the webserver uses it ---------------------------------------------------------------------------------------


def test_the_command_line_of_dagster_serves_the_guarded_app(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the webserver of this process, with Dagster's part replaced: whatever it makes is guarded
    name = "create_app_from_workspace_process_context"
    monkeypatch.setattr(cli, name, lambda *_, **__: Starlette())
    webserver.guard_requests(OwnNames.of("dagit", {}))

    app = getattr(cli, name)("context", "", 2000, lifespan=None)

    assert [each.cls for each in app.user_middleware] == [ForeignPages]


def test_looking_at_a_request_takes_some_microseconds() -> None:
    # Given what Dagit's page sends, with the headers of a browser
    scope = {
        "type": "http", "method": "POST", "path": "/graphql", "query_string": b"op=RunsRootQuery",
        "headers": [
            (b"host", b"127.0.0.1:3000"), (b"connection", b"keep-alive"), (b"content-length", b"9000"),
            (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64)"), (b"content-type", b"application/json"),
            (b"accept", b"*/*"), (b"origin", b"http://127.0.0.1:3000"), (b"sec-fetch-site", b"same-origin"),
            (b"sec-fetch-mode", b"cors"), (b"sec-fetch-dest", b"empty"), (b"referer", b"http://127.0.0.1:3000/runs"),
            (b"accept-encoding", b"gzip, deflate, br"), (b"accept-language", b"en"), (b"idempotency-key", b"x"),
        ],
    }  # fmt: skip
    served = 0

    async def app(*_: Any) -> None:
        nonlocal served
        served += 1

    guard = ForeignPages(app, OwnNames.of("dagit", {}))

    def look() -> None:
        with pytest.raises(StopIteration):
            guard(scope, None, None).send(None)  # type: ignore[arg-type]

    look()
    started = time.perf_counter()
    for _ in range(1000):
        look()
    # Then it costs nothing beside the answer of some milliseconds
    assert served == 1001
    assert (time.perf_counter() - started) / 1000 < 0.001
