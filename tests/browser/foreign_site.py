"""A web site that is none of the stack's, on this host: its page tries in a browser whatever pages can send."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!doctype html><title>A foreign site</title><h1>A foreign site</h1>"

#: Gives what each way ended with; the answers themselves are no page's to see. `target` is Dagit's address.
ATTACK = """
async ([target, mutation]) => {
  const address = `${target}/graphql?query=${encodeURIComponent(mutation)}`;
  const body = JSON.stringify({query: mutation});
  const ended = {};
  const element = (name, tag, attributes) => new Promise(resolve => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.onload = () => { ended[name] = "loaded"; resolve(); };
    made.onerror = () => { ended[name] = "error"; resolve(); };
    document.body.append(made);
  });
  const request = (name, url, options) => fetch(url, options).then(
    answer => { ended[name] = answer.type === "opaque" ? "sent" : answer.status; },
    () => { ended[name] = "error"; });
  const post = (kind, text, more) =>
    ({method: "POST", mode: "no-cors", headers: {"Content-Type": kind}, body: text, ...more});
  const form = (name, method, kind, fields) => new Promise(resolve => {
    const frame = Object.assign(document.createElement("iframe"), {name});
    const made = Object.assign(document.createElement("form"), {
      target: name, method, enctype: kind, action: method === "get" ? `${target}/graphql` : address});
    for (const [key, value] of Object.entries(fields))
      made.append(Object.assign(document.createElement("input"), {name: key, value}));
    document.body.append(frame, made);
    frame.onload = () => { ended[name] = "loaded"; resolve(); };
    made.submit();
  });
  const socket = (name, protocol) => new Promise(resolve => {
    const made = new WebSocket(`${target.replace("http", "ws")}/graphql`, protocol);
    made.onopen = () => { ended[name] = "open"; resolve(); };
    made.onerror = () => { ended[name] = "error"; resolve(); };
  });
  const split = body.indexOf("mutation");
  await Promise.all([
    element("img", "img", {src: address}),
    element("script", "script", {src: address}),
    element("iframe", "iframe", {src: address}),
    element("iframe of Dagit", "iframe", {src: target}),
    element("object", "object", {data: address}),
    request("GET", address, {mode: "no-cors"}),
    request("GET with CORS", address, {}),
    request("POST in the address", address, {method: "POST", mode: "no-cors"}),
    request("POST text/plain", `${target}/graphql`, post("text/plain", body)),
    request("POST text/plain; application/json", `${target}/graphql`, post("text/plain; application/json", body)),
    request("POST form", address, post("application/x-www-form-urlencoded", `query=${encodeURIComponent(mutation)}`)),
    request("POST multipart", address, post("multipart/form-data; boundary=b", body)),
    request("POST without referrer", `${target}/graphql`, post("text/plain", body, {referrerPolicy: "no-referrer"})),
    request("POST json", `${target}/graphql`, {...post("application/json", body), mode: "cors"}),
    request("report", `${target}/report_asset_materialization/evil`, {method: "POST", mode: "no-cors"}),
    form("form get", "get", "application/x-www-form-urlencoded", {query: mutation}),
    form("form post", "post", "application/x-www-form-urlencoded", {query: mutation}),
    form("form text", "post", "text/plain", {[body.slice(0, split)]: body.slice(split)}),
    form("form multipart", "post", "multipart/form-data", {query: mutation}),
    socket("graphql-ws", "graphql-ws"),
    socket("graphql-transport-ws", "graphql-transport-ws"),
  ]);
  ended.beacon = navigator.sendBeacon(`${target}/graphql`, body);
  navigator.sendBeacon(address, new Blob([body], {type: "application/x-www-form-urlencoded"}));
  return ended;
}
"""


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """Its requests are nobody's concern."""


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Browsers leave before an answer is written."""


@contextmanager
def foreign_site() -> Iterator[int]:
    """The port on which the site is, under every name of this host."""
    with Server(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
