"""An S3 store in memory with the weaknesses of some: it knows no conditional writes, ignores them, or is busy at times.

A real one is tests/unit/seaweed.py.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ERROR = "<Error><Code>{code}</Code><Message>{code} it is</Message></Error>"
#: What a store says that has no conditional writes, as Alibaba's and older ones.
UNKNOWN = (501, "NotImplemented")
CONDITIONS = ("If-None-Match", "If-Match")


@dataclass
class Weaknesses:
    """What the store does with conditions on puts and on completed uploads: `kept`, `ignored` or `unknown`."""

    put: str = "kept"
    multipart: str = "kept"
    #: Answers that come first, by method; of a status of 200 the work is done, and the answer is lost all the same.
    first: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    #: All requests, as method and conditions.
    seen: list[str] = field(default_factory=list)
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    #: The parts of each by their numbers: several come at once, in any order.
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Weaknesses

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes | str = b"", **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fails(self, kind: str) -> bool:
        """Whether this request is answered with an error; its body is read."""
        condition = next((name for name in CONDITIONS if self.headers[name]), "")
        self.store.seen.append(f"{self.command} {condition}".strip())
        first = self.store.first.get(self.command)
        if first:
            status, code = first.pop(0)
            if code != "lost":
                self.answer(status, ERROR.format(code=code))
                return True
        behaviour = getattr(self.store, kind, "kept")
        if not condition or behaviour == "ignored":
            return False
        if behaviour == "unknown":
            self.answer(UNKNOWN[0], ERROR.format(code=UNKNOWN[1]))
            return True
        there = self.store.objects.get(self.key)
        wanted = self.headers[condition].strip('"')
        fits = there is None if condition == "If-None-Match" else bool(there and there[1] == wanted)
        if not fits:
            self.answer(412, ERROR.format(code="PreconditionFailed"))
        return not fits

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def keep(self, data: bytes, etag: str) -> None:
        self.store.objects[self.key] = (data, etag)

    def do_PUT(self) -> None:
        data = self.body()
        etag = md5(data, usedforsecurity=False).hexdigest()
        if "partNumber" in self.query:
            if not self.fails("part"):
                self.store.uploads[self.query["uploadId"][0]][int(self.query["partNumber"][0])] = data
                self.answer(200, ETag=f'"{etag}"')
            return
        if not self.fails("put"):
            self.keep(data, etag)
            self.answer(200, ETag=f'"{etag}"')

    def do_POST(self) -> None:
        self.body()
        if "uploads" in self.query:
            name = str(len(self.store.uploads))
            self.store.uploads[name] = {}
            self.answer(200, f"<R><UploadId>{name}</UploadId></R>")
            return
        upload = self.query["uploadId"][0]
        if upload not in self.store.uploads:
            self.answer(404, ERROR.format(code="NoSuchUpload"))
            return
        lost = self.store.first.get("POST", [])[:1] == [(503, "lost")]
        if self.fails("multipart"):
            return
        found = self.store.uploads.pop(upload)
        parts = [found[number] for number in sorted(found)]
        hashes = b"".join(md5(part, usedforsecurity=False).digest() for part in parts)
        etag = f"{md5(hashes, usedforsecurity=False).hexdigest()}-{len(parts)}"
        self.keep(b"".join(parts), etag)
        if lost:
            self.answer(503, ERROR.format(code="SlowDown"))
        else:
            self.answer(200, f'<R><ETag>"{etag}"</ETag></R>')

    def do_GET(self) -> None:
        if self.fails("get"):
            return
        if "list-type" in self.query:
            # What is there no test asks.
            self.answer(200, "<ListBucketResult/>")
            return
        found = self.store.objects.get(self.key)
        if found:
            self.answer(200, found[0], ETag=f'"{found[1]}"')
        else:
            self.answer(404, ERROR.format(code="NoSuchKey"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        if "uploadId" in self.query:
            self.store.uploads.pop(self.query["uploadId"][0], None)
        else:
            self.store.objects.pop(self.key, None)
        self.answer(204)


class Server(ThreadingHTTPServer):
    #: So many may come at once.
    request_queue_size = 128


@contextmanager
def s3_stub(store: Weaknesses) -> Iterator[str]:
    """Such a store while the context lasts; yields its address."""
    handler = type("OneStore", (Handler,), {"store": store})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
