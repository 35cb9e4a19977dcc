"""A door by itself, with stubs behind it: what its own tests ask."""

import base64
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from scripts.console import BUILD_FOLDER, ROOT
from tests.conftest import free_ports
from tests.stack.stack import Stack, docker
from tests.waiting import wait_until

STUBS = Path(__file__).with_name("door_stubs.py")
#: The names under which the stubs are asked, and their ports.
PAGES = {"dagit": 3000, "flower": 5555, "metrics": 9808, "prometheus": 9090, "grafana": 3000, "minio": 9000}
SECRET, PASSWORD = "the-secret-of-the-two", "the-password-of-admin"
#: Certificates for the issuer.
AUTHORITY = BUILD_FOLDER / "issuer"
#: With HS256 the client's secret is the key.
CLIENT_SECRET = "0123456789abcdef0123456789abcdef"
#: What its certificate is for.
NAMES = "DNS:localhost,IP:127.0.0.1"
#: What containers of the stack are given, as compose/ has it.
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--memory", "192m",
            "--pids-limit", "1024", "--tmpfs", "/tmp:mode=1777,size=16m")  # fmt: skip


@dataclass
class Door:
    """One door, by its container. Requests are those of `user`, if one is named."""

    container: str
    port: int
    s3_port: int
    certificate: Path
    users: dict[str, str] = field(default_factory=lambda: {"admin": PASSWORD})

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def session(self) -> requests.Session:
        session = requests.Session()
        session.verify = str(self.certificate)
        session.trust_env = False
        return session

    def get(self, path: str, user: str | None = None, **headers: str) -> requests.Response:
        """By basic auth, as scripts do."""
        auth = (user, self.users[user]) if user else None
        return self.session().get(
            f"{self.url}{path}", auth=auth, headers=headers, timeout=20, allow_redirects=False
        )

    def asked(self, path: str, user: str, **headers: str) -> dict[str, Any]:
        """What the page behind the door was asked."""
        response = self.get(path, user, **headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def logged_in(self, user: str) -> requests.Session:
        """A session as the login's form makes it."""
        session = self.session()
        response = session.post(
            f"{self.url}/door/login",
            data={"httpd_username": user, "httpd_password": self.users[user]},
            allow_redirects=False,
            timeout=20,
        )
        assert response.status_code == 302, response.text
        return session

    def make_user(self, name: str, role: str, password: str | None = None) -> None:
        self.users[name] = password or f"the-password-of-{name}"
        self.exec("user", "set", name, role, given=self.users[name])

    def exec(self, *command: str, given: str = "") -> str:
        return run("exec", "--interactive", self.container, *command, given=given)

    def websocket(self, user: str) -> socket.socket:
        """An open WebSocket to Dagit; its first frame is read."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        opened = context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), 20), server_hostname="localhost"
        )
        login = base64.b64encode(f"{user}:{self.users[user]}".encode()).decode()
        key = base64.b64encode(os.urandom(16)).decode()
        opened.sendall(
            f"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nAuthorization: Basic {login}\r\n\r\n".encode()
        )
        answer = b""
        while user.encode() not in answer.partition(b"\r\n\r\n")[2]:
            more = opened.recv(4096)
            assert more, answer
            answer += more
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return opened

    @property
    def memory(self) -> float:
        """Megabytes of the whole container, as the engine counts them."""
        text = run("stats", "--no-stream", "--format", "{{.MemUsage}}", self.container).split("/")[0].strip()
        for unit, factor in {"GiB": 1024**3, "MiB": 1024**2, "KiB": 1024}.items():
            if text.endswith(unit):
                return float(text.removesuffix(unit)) * factor / 1e6
        raise AssertionError(text)

    def logs(self) -> str:
        return run("logs", self.container, both=True)


@contextmanager
def door_with_stubs(
    stack: Stack, folder: Path, ports: tuple[int, int, int], **environment: str
) -> Iterator[Door]:
    """A door of the image that this checkout makes; the third port is the issuer's, for browsers."""
    name = f"{stack.project}-door-alone"
    image = f"{stack.project}-door-alone"
    build = ("build", "--quiet", "--tag", image, "--build-arg", f"BASE_IMAGE={stack.settings['BASE_IMAGE']}")
    remove(name)
    try:
        run(*build, str(ROOT / "docker" / "door"))
        run("network", "create", name)
        with stubs(stack, name, ports[2]):
            published = ("--publish", f"127.0.0.1:{ports[0]}:8443", "--publish", f"127.0.0.1:{ports[1]}:9443")
            settings = {
                "DOOR_SECRET": SECRET,
                "DOOR_ADMIN_PASSWORD": PASSWORD,
                "DOOR_NAMES": NAMES,
                "DOOR_S3": "yes",
                "DOOR_PROFILES": "postgres,monitoring,grafana",
                "FLOWER_PASSWORD": "flowers",
                "GRAFANA_PASSWORD": "graphs",
                **environment,
            }
            variables = [part for item in settings.items() for part in ("--env", "=".join(item))]
            run(
                "run",
                "--detach",
                "--name",
                name,
                "--network",
                name,
                "--volume",
                f"{name}:/data",
                *HARDENED,
                *published,
                *variables,
                image,
            )
            door = Door(name, ports[0], ports[1], folder / "door.crt")
            wait_until(lambda: is_up(door), 30, "the door listens", pause=0.2)
            yield door
    finally:
        remove(name)
        run("image", "rm", "--force", image, check=False)


@contextmanager
def another_door(door: Door, folder: Path, **environment: str) -> Iterator[Door]:
    """One beside it, with the same pages behind it and a volume of its own."""
    name, (port,) = f"{door.container}-too", map(int, free_ports(1))
    settings = {"DOOR_SECRET": SECRET, "DOOR_ADMIN_PASSWORD": PASSWORD, "DOOR_NAMES": NAMES, **environment}
    variables = [part for item in settings.items() for part in ("--env", "=".join(item))]
    run("rm", "--force", "--volumes", name, check=False)
    try:
        run("run", "--detach", "--name", name, "--network", door.container, *HARDENED,
            "--publish", f"127.0.0.1:{port}:8443", *variables, door.container)  # fmt: skip
        other = Door(name, port, 0, folder / "other.crt")
        wait_until(lambda: is_up(other), 30, "the other door listens", pause=0.2)
        yield other
    finally:
        run("rm", "--force", "--volumes", name, check=False)


@contextmanager
def stubs(stack: Stack, network: str, port: int, only_issuer: bool = False) -> Iterator[str]:
    """Pages and an issuer in that network; the issuer is on this port of this host too."""
    name = f"{stack.project}-door-stubs"
    authority()
    aliases = [
        part for page in (*(() if only_issuer else PAGES), "issuer") for part in ("--network-alias", page)
    ]
    run("rm", "--force", name, check=False)
    run("create", "--name", name, "--network", network, *aliases, "--publish", f"127.0.0.1:{port}:8080",
        "--entrypoint", "python3", f"{stack.project}/dagster", "/tmp/door_stubs.py", CLIENT_SECRET,
        f"http://127.0.0.1:{port}/authorize", *map(str, sorted(set(PAGES.values()))))  # fmt: skip
    try:
        # Copied, since an engine need not see this host's files.
        for file in (STUBS, AUTHORITY / "company.pem", AUTHORITY / "nobody.pem"):
            run("cp", str(file), f"{name}:/tmp/{file.name}")
        run("start", name)
        yield name
    finally:
        run("rm", "--force", name, check=False)


def authority() -> Path:
    """The file of a company's certificate authority; beside it the issuer's certificates with their keys, one from there
    and one from nobody."""
    AUTHORITY.mkdir(parents=True, exist_ok=True)
    ca = AUTHORITY / "ca.crt"
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
    leaf = (
        "-subj",
        "/CN=issuer",
        "-addext",
        "subjectAltName=DNS:issuer",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    )

    def made(name: str, *options: str) -> None:
        key, cert = AUTHORITY / f"{name}.key", AUTHORITY / f"{name}.crt"
        command = ["openssl", *new, "-keyout", str(key), "-out", str(cert), *options]
        subprocess.run(command, check=True, capture_output=True)
        (AUTHORITY / f"{name}.pem").write_text(cert.read_text() + key.read_text())
        (AUTHORITY / f"{name}.pem").chmod(0o644)

    if not ca.exists():
        made("ca", "-subj", "/CN=authority of a company")
        made("company", *leaf, "-CA", str(ca), "-CAkey", str(AUTHORITY / "ca.key"))
        made("nobody", *leaf)
    return ca


def is_up(door: Door) -> bool:
    state = json.loads(run("inspect", door.container))[0]["State"]
    assert state["Running"], door.logs()
    door.certificate.write_text(
        run("exec", door.container, "openssl", "x509", "-in", "/data/certificate.pem", check=False)
    )
    try:
        return door.get("/door/login").status_code == 200
    except OSError:
        return False


def remove(name: str) -> None:
    for command in (("rm", "--force", name), ("volume", "rm", "--force", name), ("network", "rm", name)):
        run(*command, check=False)


def run(*arguments: str, given: str = "", check: bool = True, both: bool = False) -> str:
    """What the engine's client prints."""
    result = subprocess.run(
        [docker(), *arguments], input=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert not check or not result.returncode, f"{arguments}: {result.stderr}"
    return result.stdout + (result.stderr if both else "")


def roles(answer: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Who a page was told that asks: name and role."""
    headers = answer["headers"]
    return headers.get("X-Stack-User"), headers.get("X-Stack-Role")
