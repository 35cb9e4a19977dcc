"""The logins of hosts in the stack's own stores: made where they are missing, closed where no host's file names them."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence

from scripts import compose, env_file, store_logins
from scripts.console import done, run_logged
from scripts.hosts import host
from scripts.hosts.host import Host

#: What their names look like; no other login begins so.
LOGIN = re.compile(r"host-([a-z0-9-]+)-[0-9a-f]{6}")
PSQL = ("exec", "--no-TTY", "postgres", "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "/run/postgresql",
        "-U", "postgres", "-d", "postgres")  # fmt: skip
#: A password may not land in the server's log. The login acts as the owner of all tables, as the stack's own does.
MAKE_ROLE = """
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
CREATE ROLE :"login" LOGIN PASSWORD :'password';
SELECT format('GRANT %I TO %I', owner.rolname, :'login'),
       format('ALTER ROLE %I SET role = %L', :'login', owner.rolname)
  FROM pg_database JOIN pg_roles AS owner ON owner.oid = datdba WHERE datname = :'db' \\gexec
"""
#: First no new connection, then an end to those that are left; then it is gone.
REMOVE_ROLE = """
ALTER ROLE :"login" NOLOGIN PASSWORD NULL;
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = :'login';
DROP ROLE :"login";
"""
#: Adds to what there is. By a file, since rabbitmqctl reads no standard input that is not a terminal.
IMPORT = "umask 077; cat > /tmp/hosts.json; trap 'rm /tmp/hosts.json' EXIT; rabbitmqctl --quiet import_definitions /tmp/hosts.json"
HASHING = "rabbit_password_hashing_sha256"
#: The services that are the stack's own stores.
SERVICES = {"postgres": "postgres", "rabbitmq": "rabbitmq", "s3": "minio"}
LIST_ROLES = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'host-%';"


def own_stores() -> list[str]:
    settings = env_file.settings()
    return [name for name, store in store_logins.STORES.items() if not settings.get(store.outside)]


def wanted(store: str) -> dict[str, str]:
    """The passwords of those that hosts' files name, by login."""
    known = store_logins.STORES[store]
    found = [each.settings for each in host.joined()]
    return {
        each[known.user]: each[known.password] for each in found if LOGIN.fullmatch(each.get(known.user, ""))
    }


def ensure() -> None:
    """Make those that a store does not have; it must be up."""
    for store in own_stores():
        logins = wanted(store)
        missing = {login: logins[login] for login in logins.keys() - PRESENT[store]()}
        if missing:
            MAKERS[store](missing)
            done(f"{store_logins.STORES[store].title}: made {', '.join(sorted(missing))}")


def close_unnamed() -> None:
    """Close those that no host's file names, connections and all. Of S3's, those of a host that is still there may read for
    a week, so that links which they have signed still open."""
    for store in own_stores():
        present = PRESENT[store]()
        for login in sorted(present - wanted(store).keys()):
            CLOSERS[store](login)
            done(f"{store_logins.STORES[store].title}: {login} is closed, and its connections are cut")


def close_shut_out() -> None:
    """Close the logins of hosts that have left; then their files go."""
    close_unnamed()
    for each in host.shut_out():
        each.file.unlink()


def close_restored() -> None:
    """Close all of a restored Postgres: a host that could not be stopped writes nothing before it is chosen what goes on."""
    for login in roles():
        remove_role(login)


# --- Postgres ------------------------------------------------------------------------------------------


def roles() -> set[str]:
    return only_ours(compose.output(*PSQL, given=LIST_ROLES).split())


def make_roles(logins: Mapping[str, str]) -> None:
    database = env_file.settings().get("POSTGRES_DB") or "dagster"
    for login, password in logins.items():
        # Not among the arguments, which all processes of this host may read.
        given = f"\\set login {login}\n\\set password {password}\n\\set db '{database}'\n{MAKE_ROLE}"
        compose.output(*PSQL, "--single-transaction", "-f", "-", given=given)


def remove_role(login: str) -> None:
    compose.output(*PSQL, given=f"\\set login {login}\n{REMOVE_ROLE}")


# --- RabbitMQ ------------------------------------------------------------------------------------------


def rabbitmqctl(*arguments: str) -> str:
    return compose.output("exec", "--no-TTY", "rabbitmq", "rabbitmqctl", "--quiet", *arguments)


def broker_users() -> set[str]:
    listed = json.loads(rabbitmqctl("list_users", "--formatter", "json"))
    return only_ours([each["user"] for each in listed])


def make_broker_users(logins: Mapping[str, str]) -> None:
    vhost = env_file.settings().get("RABBITMQ_VHOST") or "dagster"
    every = dict.fromkeys(("configure", "write", "read"), ".*")
    definitions = {
        "users": [
            {
                "name": login,
                "password_hash": password_hash(password),
                "hashing_algorithm": HASHING,
                "tags": [],
            }
            for login, password in logins.items()
        ],
        "permissions": [{"user": login, "vhost": vhost, **every} for login in logins],
    }
    compose.output("exec", "--no-TTY", "rabbitmq", "sh", "-euc", IMPORT, given=json.dumps(definitions))


def password_hash(password: str) -> str:
    """RabbitMQ's own: base64 of four salt bytes and the digest of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def remove_broker_user(login: str) -> None:
    rabbitmqctl("delete_user", login)


# --- MinIO ---------------------------------------------------------------------------------------------

ASK_INIT = (
    "--progress",
    "quiet",
    "run",
    "--rm",
    "--no-deps",
    "--no-TTY",
    "init",
    "python",
    "-m",
    "dagster_stack",
)


def keys() -> set[str]:
    return only_ours(compose.output(*ASK_INIT, "host-keys").split())


def make_keys(logins: Mapping[str, str]) -> None:
    compose.output(*ASK_INIT, "host-keys", "--make", given=json.dumps(logins))


def remove_key(login: str) -> None:
    found = LOGIN.fullmatch(login)
    if found and found[1] in host.names():
        command = [*compose.compose(), *ASK_INIT, "close-key", login]
        run_logged(f"MinIO: {login} may only read, for seven days, then nothing", command)
    else:
        compose.output(*ASK_INIT, "host-keys", "--remove", login)


def only_ours(logins: Sequence[str]) -> set[str]:
    return {login for login in logins if LOGIN.fullmatch(login)}


PRESENT = {"postgres": roles, "rabbitmq": broker_users, "s3": keys}
MAKERS = {"postgres": make_roles, "rabbitmq": make_broker_users, "s3": make_keys}
CLOSERS = {"postgres": remove_role, "rabbitmq": remove_broker_user, "s3": remove_key}


def renew(stores: Sequence[str]) -> None:
    """New logins in the files of hosts that can be reached; former ones are closed once their workers have these."""
    # Here, since a host's file reads certificates by Compose.
    from scripts.hosts import file

    for each in host.wanted():
        file.write(each, renewed=tuple(stores))


def of(each: Host) -> list[str]:
    return [each.settings.get(store_logins.STORES[store].user, "") for store in own_stores()]
