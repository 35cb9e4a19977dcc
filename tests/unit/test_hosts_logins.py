"""Logins of further hosts in a real Postgres, and what is made and closed in all three stores."""

import subprocess
from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from dagster_stack.services import host_keys
from dagster_stack.services.provision import POLICY_NAME
from scripts import compose, env_file
from scripts.hosts import logins
from tests.unit.postgres_server import INSTALL, PostgresServer, package
from tests.unit.test_former_key import Admin

OWNER, DATABASE, LOGIN = "hosts_owner", "hosts", "host-box2-3fa9c1"


@pytest.fixture
def server(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """One with a database of the stack's, which `docker compose exec postgres` would reach."""
    installed = package()
    assert installed

    def output(*arguments: str, given: str | None = None) -> str:
        asked = [each for each in arguments[4:] if each != "/run/postgresql"]
        command = [str(installed / INSTALL / "bin" / "psql"), *asked]
        command[command.index("-h")] = f"--host={postgres.sockets}"
        return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(compose, "output", output)
    monkeypatch.setattr(env_file, "settings", lambda: {"POSTGRES_DB": DATABASE})
    postgres.execute(f"CREATE ROLE {OWNER} LOGIN")
    postgres.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
    postgres.execute(f"REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC")
    yield postgres
    for login in logins.roles():
        logins.remove_role(login)
    postgres.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
    postgres.execute(f"DROP ROLE {OWNER}")


def connected(server: PostgresServer, user: str) -> sqlalchemy.Connection:
    address = server.url(DATABASE).replace("postgres@", f"{user}@", 1)
    return sqlalchemy.create_engine(address, poolclass=NullPool).connect()


def test_a_host_s_role_acts_as_the_owner_of_all_tables(server: PostgresServer) -> None:
    logins.make_roles({LOGIN: "secret"})
    assert logins.roles() == {LOGIN}
    with connected(server, LOGIN) as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE things (number int)"))
        owners = connection.execute(
            sqlalchemy.text("SELECT tableowner FROM pg_tables WHERE tablename = 'things'")
        )
        assert owners.scalar() == OWNER


def test_who_is_shut_out_loses_open_connections_and_gets_no_new_one(server: PostgresServer) -> None:
    logins.make_roles({LOGIN: "secret"})
    with connected(server, LOGIN) as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        logins.remove_role(LOGIN)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(sqlalchemy.text("SELECT 1"))
        connection.invalidate()
    assert logins.roles() == set()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="does not exist"):
        connected(server, LOGIN)


def test_hosts_that_a_restored_postgres_knows_wait_until_it_is_chosen_what_goes_on(
    server: PostgresServer,
) -> None:
    """One that could not be reached drives its runs, and would go on with what was restored."""
    logins.make_roles({LOGIN: "secret", "host-box3-000000": "secret"})
    with connected(server, LOGIN) as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        logins.close_restored()
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(sqlalchemy.text("SELECT 1"))
        connection.invalidate()
    assert logins.roles() == set()


class Store:
    """A store by what it has: makes and closes as the real ones do."""

    def __init__(self, *present: str) -> None:
        self.logins = {*present}

    def install(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setitem(logins.PRESENT, name, lambda: {*self.logins})
        monkeypatch.setitem(logins.MAKERS, name, self.logins.update)
        monkeypatch.setitem(logins.CLOSERS, name, self.logins.discard)


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Sequence[Store]:
    found = [Store("host-box2-000000", "host-box9-111111") for _ in range(3)]
    for name, store in zip(("postgres", "rabbitmq", "s3"), found, strict=True):
        store.install(monkeypatch, name)
    monkeypatch.setattr(logins, "own_stores", lambda: ["postgres", "rabbitmq", "s3"])
    monkeypatch.setattr(logins, "wanted", lambda _: {LOGIN: "secret"})
    return found


def test_missing_logins_are_made_and_nothing_is_closed_by_that(stores: Sequence[Store]) -> None:
    logins.ensure()
    assert all(store.logins == {LOGIN, "host-box2-000000", "host-box9-111111"} for store in stores)


def test_what_no_host_s_file_names_is_closed(stores: Sequence[Store]) -> None:
    logins.ensure()
    logins.close_unnamed()
    assert all(store.logins == {LOGIN} for store in stores)


def test_keys_of_hosts_are_those_that_may_write() -> None:
    admin = Admin(
        **{LOGIN: POLICY_NAME, "host-box2-000000": "dagster-stack-until-20261206", "dagster": POLICY_NAME}
    )
    assert host_keys.present(admin) == [LOGIN]  # type: ignore[arg-type]
    host_keys.remove(admin, LOGIN)  # type: ignore[arg-type]
    host_keys.remove(admin, LOGIN)  # type: ignore[arg-type]
    assert host_keys.present(admin) == []  # type: ignore[arg-type]
