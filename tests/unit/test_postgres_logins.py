"""The logins of .env in a restored cluster, whose roles are those of another moment (docker/postgres/start)."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from scripts import compose, store_logins
from scripts.console import ROOT
from tests.unit.postgres_server import INSTALL, PostgresServer, package

#: Roles are the server's, which other tests share.
OWNER, OTHER, DATABASE = "restored", "restored_b", "restored"
FUNCTION = re.compile(r"^ensure_role_and_database\(\) \{$.*?^\}$", re.MULTILINE | re.DOTALL)
LOGINS = f"SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname IN ('{OWNER}', '{OTHER}')"


@dataclass
class Cluster:
    server: PostgresServer
    script: str

    def psql(self, *arguments: str, given: str) -> str:
        installed = package()
        assert installed
        command = [str(installed / INSTALL / "bin" / "psql"), *arguments, "-h", str(self.server.sockets)]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout

    def start(self, user: str) -> None:
        """What the container does at each start."""
        installed = package()
        assert installed
        sql = f'sql() {{ psql -X -q -v ON_ERROR_STOP=1 -h {self.server.sockets} -U postgres "$@"; }}'
        settings = {
            "POSTGRES_USER": user,
            "POSTGRES_PASSWORD": "new",
            "POSTGRES_SUPERUSER_PASSWORD": "new",
            "POSTGRES_DB": DATABASE,
        }
        path = f"{installed / INSTALL / 'bin'}:{os.environ['PATH']}"
        subprocess.run(
            ["sh", "-euc", f"{sql}\n{self.script}\nensure_role_and_database"],
            check=True,
            env={"PATH": path, **settings},
        )

    def rows(self, statement: str, user: str = "postgres", database: str = "postgres") -> set[str]:
        address = self.server.url(database).replace("postgres@", f"{user}@", 1)
        engine = sqlalchemy.create_engine(address, poolclass=NullPool)
        with engine.begin() as connection:
            return {str(row[0]) for row in connection.execute(sqlalchemy.text(statement))}


@pytest.fixture
def cluster(postgres: PostgresServer) -> Iterator[Cluster]:
    found = FUNCTION.search((ROOT / "docker" / "postgres" / "start").read_text(encoding="utf-8"))
    assert found
    yield Cluster(postgres, found[0])
    postgres.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    postgres.execute(f"DROP ROLE IF EXISTS {OTHER}")
    postgres.execute(f"DROP ROLE IF EXISTS {OWNER}")
    postgres.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ([OWNER], OTHER),
        ([OWNER, OTHER], OWNER),
        ([OWNER, OTHER, OWNER], OTHER),
        ([OWNER], OWNER),
        ([OTHER], OWNER),
    ],
)
def test_a_cluster_of_before_a_rotation_has_the_login_of_env_and_no_other_one(
    then: list[str], now: str, cluster: Cluster, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a cluster of a moment after these rotations, with a table
    for user in then:
        cluster.start(user)
    cluster.rows("CREATE TABLE runs AS SELECT 7 AS id; SELECT id FROM runs", then[-1], DATABASE)
    # When it is restored where .env names another login
    cluster.start(now)
    env.write_text(f"POSTGRES_USER={now}\n")
    monkeypatch.setattr(
        compose,
        "output",
        lambda *words, given: cluster.psql(*words[4:-6], "-U", "postgres", "-d", "postgres", given=given),
    )
    store_logins.close_restored()
    # Then that one reads, writes and owns all, and no other one logs in
    assert cluster.rows(
        "INSERT INTO runs VALUES (8); ALTER TABLE runs ADD name text; SELECT id FROM runs", now, DATABASE
    ) == {"7", "8"}
    assert cluster.rows(LOGINS) == {now}
