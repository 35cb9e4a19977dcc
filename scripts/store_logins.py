"""The logins by which services reach the stack's own stores, and how they are replaced while all goes on.

Each store knows two while services are swapped: the former one and the new one, which `.env` names. As long as a former one
is open, `ROTATING` in `.env` has its name; `make rotate`, `make up` and `make deploy` close it once all services have the new one.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from scripts import compose, engine, env_file
from scripts.console import Failure, done, run_logged, warn

SETTING = "ROTATING"
ALL = "all"
#: How the other one of two logins ends, and how long what tells S3 keys from each other is.
OTHER, KEY_BYTES = "_b", 3
CLOSE_ROLE = """
SELECT format('ALTER ROLE %I NOLOGIN PASSWORD NULL', rolname) FROM pg_roles WHERE rolname = :'former' \\gexec
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = :'former';
"""


@dataclass(frozen=True)
class Store:
    """Where `.env` names its login; `outside` is set where the store is not the stack's own."""

    title: str
    outside: str
    user: str
    password: str
    #: Passwords of people, of monitoring and of the store's root: nobody who executes a step has them.
    others: tuple[str, ...]


STORES = {
    "postgres": Store("Postgres", "POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_PASSWORD",
                      ("POSTGRES_SUPERUSER_PASSWORD", "POSTGRES_MONITOR_PASSWORD")),
    "rabbitmq": Store("RabbitMQ", "RABBITMQ_HOST", "RABBITMQ_USER", "RABBITMQ_PASSWORD",
                      ("RABBITMQ_ADMIN_PASSWORD", "RABBITMQ_MONITOR_PASSWORD")),
    "s3": Store("MinIO", "S3_ENDPOINT_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY",
                ("MINIO_ROOT_PASSWORD", "MINIO_MONITOR_PASSWORD")),
}  # fmt: skip
#: Of pages, and of the door before them.
OF_PAGES = ("FLOWER_PASSWORD", "GRAFANA_PASSWORD", "DOOR_ADMIN_PASSWORD", "DOOR_SECRET")


# --- new ones ------------------------------------------------------------------------------------------


def chosen(what: str) -> list[str]:
    """The stores that WHAT names; raises Failure for an unknown and for an outside one."""
    if what not in (ALL, *STORES):
        raise Failure(f"WHAT={what}: there are {', '.join(STORES)} and {ALL}.")
    settings = env_file.settings()
    own = [name for name, store in STORES.items() if not settings.get(store.outside)]
    if what != ALL and what not in own:
        raise Failure(
            f"{STORES[what].title} is an outside store ({STORES[what].outside} in {env_file.env_path().name}): make a second"
            f" login there, write it into {env_file.env_path().name}, `make deploy`, then close the former one."
        )
    return own if what == ALL else [what]


def renewed(what: str) -> dict[str, str]:
    """The variables of `.env` with new logins, and with what is to be closed afterwards. Raises Failure."""
    settings = env_file.settings()
    names = chosen(what)
    values: dict[str, str] = {}
    for name in names:
        store = STORES[name]
        former = settings.get(store.user) or "dagster"
        values |= {store.user: successor(name, former), store.password: secret()}
    if what == ALL:
        values |= {other: secret() for name in names for other in STORES[name].others}
        values |= {page: secret() for page in OF_PAGES}
    if overridden := sorted(values.keys() & os.environ.keys()):
        raise Failure(
            f"{', '.join(overridden)} in the environment wins over {env_file.env_path().name}: unset it, and rotate again."
        )
    formers = {name: settings.get(STORES[name].user) or "dagster" for name in names}
    return {**values, SETTING: packed(formers)}


def successor(store: str, former: str) -> str:
    """The next login's name. Postgres and RabbitMQ have two in turn; of S3's each is a new one, as former ones open links."""
    if store == "s3":
        base, dash, end = former.rpartition("-")
        is_ours = dash and len(end) == 2 * KEY_BYTES and set(end) <= set("0123456789abcdef")
        return f"{base if is_ours else former}-{secrets.token_hex(KEY_BYTES)}"
    return former.removesuffix(OTHER) if former.endswith(OTHER) else f"{former}{OTHER}"


def secret() -> str:
    return secrets.token_hex(env_file.SECRET_BYTES)


def packed(formers: Mapping[str, str]) -> str:
    return ",".join(f"{store}:{quote(login, safe='')}" for store, login in formers.items())


# --- former ones ---------------------------------------------------------------------------------------


def former() -> dict[str, str]:
    """The logins that are still to be closed, by their store."""
    pairs = (part.partition(":") for part in env_file.read(env_file.env_path()).get(SETTING, "").split(","))
    return {store: unquote(login) for store, _, login in pairs if store in STORES and login}


def close_former() -> None:
    """Close them, once all services have the new ones; again does no harm. Raises Failure."""
    settings = env_file.settings()
    for name, login in former().items():
        store = STORES[name]
        # One of a store that has become an outside one meanwhile, or that .env names again, stays as it is.
        if not settings.get(store.outside) and login != settings.get(store.user):
            CLOSERS[name](login)
    if former():
        env_file.set_value(SETTING, "")
        warn_of_old_commands()


def close_restored() -> None:
    """Close the login that `.env` does not name: a moment before a rotation has it open, with its former password."""
    close_role(successor("postgres", env_file.settings().get(STORES["postgres"].user) or "dagster"))


def close_postgres(login: str) -> None:
    close_role(login)
    done(f"Postgres: {login} can't log in any more")


def close_role(login: str) -> None:
    """No new connection, and an end to those that are left. One that is not there is no error."""
    asked = ("psql", "-X", "-q", "-t", "-v", "ON_ERROR_STOP=1", "-v", f"former={login}", "-h", "/run/postgresql",
             "-U", "postgres", "-d", "postgres")  # fmt: skip
    compose.output("exec", "--no-TTY", "postgres", *asked, given=CLOSE_ROLE)


def close_rabbitmq(login: str) -> None:
    """Its connections end. One that is gone is no error."""
    compose.output("exec", "--no-TTY", "rabbitmq", "rabbitmqctl", "--quiet", "delete_user", login)
    done(f"RabbitMQ: {login} is deleted")


def close_s3(login: str) -> None:
    """Signed links are good for seven days, as long as the key that signed them may read."""
    module = ("python", "-m", "dagster_stack", "close-key", login)
    command = [*compose.compose(), "run", "--rm", "--no-deps", "--no-TTY", "init", *module]
    run_logged(f"MinIO: {login} may only read, for seven days, then nothing", command)


CLOSERS = {"postgres": close_postgres, "rabbitmq": close_rabbitmq, "s3": close_s3}


def warn_of_old_commands() -> None:
    """Name containers of `docker compose run`, such as `make shell`: they were made with the former passwords."""
    if names := commands():
        warn(
            f"{', '.join(names)}: started before with `docker compose run`, with the former passwords; start them anew"
        )


def commands() -> Sequence[str]:
    labels = (f"label=com.docker.compose.project={compose.project()}", "label=com.docker.compose.oneoff=True")
    filters = [part for label in labels for part in ("--filter", label)]
    return sorted(engine.ask("ps", *filters, "--format", "{{.Names}}").split())
