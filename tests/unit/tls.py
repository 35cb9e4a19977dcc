"""Certificate authorities of the tests, by openssl, and servers with certificates of theirs."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: What stands in the certificate of a server, and under what else it answers. (To kombu `localhost` is the first one.)
NAME, OTHER_NAME = "127.0.0.1", "127.0.0.2"


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder, and one server's certificate of it."""

    folder: Path

    @staticmethod
    def make(folder: Path, names: Sequence[str] = (f"IP:{NAME}",)) -> "Authority":
        folder.mkdir(parents=True)
        request = ["req", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        # Without the use of its key Python 3.13 takes it for no authority.
        use = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl(
            folder, *request, "-x509", "-subj", "/CN=A company", *use, "-keyout", "ca.key", "-out", "ca.pem"
        )
        openssl(
            folder, *request, "-x509", "-subj", f"/CN={NAME}", "-keyout", "server.key", "-out", "server.pem",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName={','.join(names)}",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
        return Authority(folder)

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        return context


def openssl(folder: Path, *arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@contextmanager
def server(
    authority: Authority, serve: Callable[[ssl.SSLSocket], None], plain: Callable[[socket.socket], None]
) -> Iterator[int]:
    """A server with the authority's certificate; `plain` is what is said before TLS begins. Yields its port."""
    context = authority.context()

    def each(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            plain(connection)
            with context.wrap_socket(connection, server_side=True) as encrypted:
                serve(encrypted)

    def listen(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                threading.Thread(target=each, args=(connection,), daemon=True).start()

    with socket.create_server((NAME, 0)) as first:
        port = first.getsockname()[1]
        with socket.create_server((OTHER_NAME, port)) as second:
            for listener in (first, second):
                threading.Thread(target=listen, args=(listener,), daemon=True).start()
            try:
                yield port
            finally:
                for listener in (first, second):
                    # Wakes the thread, which closing alone does not.
                    listener.shutdown(socket.SHUT_RDWR)
