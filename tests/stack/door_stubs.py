"""What stands behind a door in its tests, in a container beside it: pages that answer what they were asked, and an issuer.

`python door_stubs.py SECRET AUTHORIZE PORT…`: pages on these ports, and on 8080 an issuer of OpenID Connect whose login asks
for nothing: the address AUTHORIZE?groups=… of it is where browsers find it. The door asks it by TLS, on 8443 with a
certificate of a company's authority, on 8444 with one of nobody's.
"""

import base64
import hashlib
import hmac
import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

#: RFC 6455.
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ISSUER, ISSUER_PORT = "https://issuer:8443", 8080
BY_TLS = {8443: "/tmp/company.pem", 8444: "/tmp/nobody.pem"}
SLOW_SECS = 2
#: Who logs in at the issuer, and what is said of them.
PERSON: dict[str, Any] = {"sub": "7", "preferred_username": "eva", "groups": ["everyone"]}


class Page(BaseHTTPRequestHandler):
    """Answers a request with itself, as JSON; a WebSocket with a word, and keeps that open."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade"):
            self.websocket()
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        if self.path == "/slow":
            self.server.slow += 1
            time.sleep(SLOW_SECS)
        self.answer(
            {
                "slow": self.server.slow,
                "asked": self.server.asked,
                "port": self.server.server_port,
                "path": self.path,
                "headers": dict(self.headers),
            },
            # As Dagit's files have it.
            **({"Content-Type": "application/javascript"} if self.path.endswith(".js") else {}),
        )

    def do_POST(self) -> None:
        self.do_GET()

    def websocket(self) -> None:
        accept = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + WEBSOCKET).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
        self.end_headers()
        text = self.headers.get("X-Stack-User", "").encode()
        self.wfile.write(bytes([0x81, len(text)]) + text)
        while self.rfile.read(1):
            pass
        self.close_connection = True

    def answer(self, content: dict[str, Any], **headers: str) -> None:
        text = json.dumps(content).encode()
        self.send_response(302 if "Location" in headers else 200)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(text),
            **headers,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


class Issuer(Page):
    """`/become?groups=a,b` makes the person one of these groups; the rest is OpenID Connect."""

    nonces: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if path == "/.well-known/openid-configuration":
            self.answer(
                {
                    "issuer": ISSUER,
                    "authorization_endpoint": sys.argv[2],
                    "token_endpoint": f"{ISSUER}/token",
                    "userinfo_endpoint": f"{ISSUER}/userinfo",
                    "jwks_uri": f"{ISSUER}/keys",
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["HS256"],
                    "token_endpoint_auth_methods_supported": ["client_secret_basic"],
                }
            )
        elif path == "/become":
            PERSON["groups"] = query["groups"][0].split(",")
            self.answer(PERSON)
        elif path == "/authorize":
            code = f"code-{time.monotonic_ns()}"
            self.nonces[code] = query["nonce"][0]
            back = urlencode({"code": code, "state": query["state"][0]})
            self.answer({}, Location=f"{query['redirect_uri'][0]}?{back}")
        elif path == "/token":
            nonce = self.nonces.pop(parse_qs(content)["code"][0])
            now = int(time.time())
            claims = PERSON | {"iss": ISSUER, "aud": "dagit", "nonce": nonce, "iat": now, "exp": now + 600}
            self.answer(
                {
                    "access_token": "token",
                    "token_type": "Bearer",
                    "expires_in": 600,
                    "id_token": signed(claims, sys.argv[1]),
                }
            )
        elif path == "/userinfo":
            self.answer(PERSON)
        else:
            self.answer({"keys": []})

    def do_POST(self) -> None:
        self.do_GET()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    #: Requests so far, and slow ones.
    asked = slow = 0


def signed(claims: dict[str, Any], secret: str) -> str:
    """A token of RFC 7515."""
    head = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    signature = hmac.new(secret.encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{text(signature)}"


def part(content: dict[str, Any]) -> str:
    return text(json.dumps(content).encode())


def text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


if __name__ == "__main__":
    for port in map(int, sys.argv[3:]):
        threading.Thread(target=Server(("0.0.0.0", port), Page).serve_forever).start()
    for port, file in BY_TLS.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        server = Server(("0.0.0.0", port), Issuer)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
    Server(("0.0.0.0", ISSUER_PORT), Issuer).serve_forever()
