"""A real HTTP server in this process, whose answers a test makes."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class HttpStub:
    """Serves while its context is open. `body` is what a stand-in answers to a request."""

    def __init__(self) -> None:
        self.http_status = 200
        #: In place of `body`.
        self.raw_body: bytes | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = stub.body(self.path, content) if stub.raw_body is None else stub.raw_body
                self.send_response(stub.http_status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: pytest's output is for tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def body(self, path: str, content: bytes) -> bytes:
        raise NotImplementedError
