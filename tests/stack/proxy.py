"""A company's proxy: it answers everything itself, and remembers what it was asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "answered by the proxy"


@dataclass
class Proxy:
    """`asked` holds a line a request: its method, and the address or the host of it."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def proxy(address: str) -> Iterator[Proxy]:
    """A proxy that listens at an address of this host."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            found.asked.append(f"{self.command} {self.path}")
            self.send_response(502 if self.command == "CONNECT" else 200)
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the test's terminal."""

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT"):
        setattr(Handler, f"do_{method}", Handler.answer)
    with ThreadingHTTPServer((address, 0), Handler) as server:
        found = Proxy(f"http://me:p$wd@{address}:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
