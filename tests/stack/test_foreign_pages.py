"""Pages of other sites on the running stack: no page of the stack changes anything for them, with a login or without."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack

MUTATION = 'mutation { setConcurrencyLimit(concurrencyKey: "evil", limit: 1) { __typename } }'
#: What browsers say of a page of another site, of another port of this host, and of one that hides where it is.
FOREIGN: list[Mapping[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
]
#: Everything that Flower's API can do to workers and tasks.
FLOWER_ACTIONS = [
    "worker/shutdown/w", "worker/pool/restart/w", "worker/pool/grow/w", "worker/pool/shrink/w", "worker/pool/autoscale/w",
    "worker/queue/add-consumer/w", "worker/queue/cancel-consumer/w", "task/timeout/t", "task/rate-limit/t",
    "task/revoke/t", "task/apply/t", "task/async-apply/t", "task/send-task/t", "task/abort/t",
]  # fmt: skip


def send(method: str, url: str, **options: Any) -> requests.Response:
    return requests.request(method, url, timeout=30, **options)


def test_dagit_refuses_foreign_pages_and_serves_the_rest(stack: Stack) -> None:
    graphql = f"{stack.dagit_url}/graphql"
    # When pages of other sites do what the browser lets them
    answers = [
        send("GET", f"{graphql}?query={quote(MUTATION)}"),
        send("POST", graphql, data=MUTATION, headers={"Content-Type": "text/plain"}),
        send("POST", graphql, data={"query": MUTATION}),
        send("POST", graphql, json={"query": "{ version }"}, headers={"Host": "evil.example"}),
        *(send("POST", graphql, json={"query": MUTATION}, headers=foreign) for foreign in FOREIGN),
    ]
    # Then each is refused, and its sentence is one that clients of GraphQL show
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert all(answer.json()["errors"][0]["message"] for answer in answers)
    # And so is a socket
    page = {"Origin": "https://evil.example"}
    with pytest.raises(InvalidStatus, match="403"):
        connect(graphql.replace("http", "ws"), additional_headers=page, proxy=None)
    # And nothing was changed, as those see who may ask
    limits = stack.graphql("{ instance { concurrencyLimits { concurrencyKey } } }")["instance"]
    assert {"concurrencyKey": "evil"} not in limits["concurrencyLimits"]
    # And the service's name is good inside the stack
    inside = stack.exec("worker", "curl", "-fsS", "-m", "30", "http://dagit:3000/server_info").stdout
    assert "dagster_webserver_version" in inside


def test_rabbitmqs_management_refuses_foreign_pages_also_with_the_admins_login(stack: Stack) -> None:
    # Given a browser that remembers the login, and adds it to what any page sends
    api = f"http://127.0.0.1:{stack.settings['RABBITMQ_PORT']}/api"
    login = ("admin", stack.settings["RABBITMQ_ADMIN_PASSWORD"])
    publish = f"{api}/exchanges/{stack.vhost}/amq.default/publish"
    message = '{"properties": {}, "routing_key": "dagster", "payload": "x", "payload_encoding": "string"}'
    for foreign in FOREIGN:
        answers = [
            send(
                "POST", publish, data=message, auth=login, headers={"Content-Type": "text/plain", **foreign}
            ),
            send(
                "PUT", f"{api}/queues/{stack.vhost}/evil", json={"durable": True}, auth=login, headers=foreign
            ),
            send("DELETE", f"{api}/queues/{stack.vhost}/dagster/contents", auth=login, headers=foreign),
            send("GET", f"{api}/overview", auth=login, headers=foreign),
        ]
        # Then it is refused, with the cure
        assert [answer.status_code for answer in answers] == [403] * len(answers)
        assert all("open it by its address" in answer.text for answer in answers)
    assert "evil" not in {queue["name"] for queue in stack.broker("queues")}
    # And its own page, scripts, and a link from elsewhere work as ever
    for own in (
        {},
        {"Origin": api.removesuffix("/api"), "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ):
        assert send("GET", f"{api}/overview", auth=login, headers=own).status_code == 200
    # And no other site shows it in a frame
    page = send("GET", api.removesuffix("api"))
    assert "frame-ancestors 'self'" in page.headers["Content-Security-Policy"]


def test_minios_console_takes_nothing_that_a_foreign_page_can_send(stack: Stack) -> None:
    login = f"http://127.0.0.1:{stack.settings['MINIO_CONSOLE_PORT']}/api/v1/login"
    keys = {"accessKey": "root", "secretKey": stack.settings["MINIO_ROOT_PASSWORD"]}
    # Given that it takes JSON alone, which browsers ask for first, and answers no such question
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
        assert send("POST", login, data=b"{}", headers={"Content-Type": kind}).status_code == 415
    asked = send("OPTIONS", login, headers={**FOREIGN[0], "Access-Control-Request-Method": "POST"})
    # Then other sites get no permission, nor the cookie, nor a frame
    answer = send("POST", login, json=keys)
    assert not [
        name for each in (asked, answer) for name in each.headers if name.lower().startswith("access-")
    ]
    assert {"HttpOnly", "SameSite=Lax"} <= set(answer.headers["Set-Cookie"].split("; "))
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_pages_of_monitoring_change_nothing_and_are_read_by_no_other_site(
    stack: Stack, monitoring: Monitoring
) -> None:
    # Given Flower with its login: it acts for nobody
    flower = f"http://127.0.0.1:{stack.settings['FLOWER_PORT']}/api"
    login = ("admin", stack.settings["FLOWER_PASSWORD"])
    for action in FLOWER_ACTIONS:
        for headers in ({}, FOREIGN[0]):
            assert send("POST", f"{flower}/{action}", auth=login, headers=headers).status_code == 403
    # And Prometheus, whose interfaces for that are off
    prometheus = f"http://127.0.0.1:{stack.settings['PROMETHEUS_PORT']}"
    for path in (
        "-/quit",
        "-/reload",
        "api/v1/admin/tsdb/snapshot",
        "api/v1/admin/tsdb/delete_series",
        "api/v1/write",
    ):
        assert send("POST", f"{prometheus}/{path}").status_code >= 400
    # Then scripts of other sites can't read them, nor the figures under a foreign name
    for url in (f"{prometheus}/api/v1/query?query=up", f"{flower}/workers"):
        headers = send("GET", url, auth=login, headers=FOREIGN[0]).headers
        assert "Access-Control-Allow-Origin" not in headers
    figures = f"http://127.0.0.1:{stack.settings['METRICS_PORT']}/status.json"
    assert send("GET", figures, headers={"Host": "evil.example"}).status_code == 421
    assert send("POST", figures).status_code == 501
