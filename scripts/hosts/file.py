"""A host's file of settings: how much runs there, which is its owner's choice; and what that needs to reach the stores."""

import base64
import re
import secrets
from collections.abc import Mapping

from scripts import certificates, compose, env_file, store_logins
from scripts.hosts.host import ENGINE, HERE, Host

#: What the host's owner decides, and its values at first; the rest is as in `.env`.
OWN = {"WORKERS": "2", "HEAVY_WORKERS": "0", "RUNNERS": "0", "DAEMONS": "0"}
OF_HOST = (
    "WORKER_CONCURRENCY",
    "WORKER_MEMORY",
    "WORKER_TMP",
    "WORKER_SHM",
    "WORKER_PIDS",
    "RUNNER_MEMORY",
    "DAEMON_MEMORY",
    "DATA_DIR",
)
#: What must be the same everywhere.
SHARED = ("COMPOSE_PROJECT_NAME", "CLUSTER_ADDRESS", "POSTGRES_DB", "RABBITMQ_VHOST", "S3_BUCKET", "S3_PREFIX", "S3_REGION",
          "RUNNER_CONCURRENCY", "MAX_CONCURRENT_RUNS", "MAX_DELIVERIES", "LOG_FORMAT", "EXECUTOR",
          "KEEP_DETAILS_DAYS", "KEEP_RUNS_DAYS", "AUDIT_DAYS")  # fmt: skip
#: Of an outside store, which has no logins that this stack could make.
OF_OUTSIDE = {
    "postgres": ("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_SSLMODE", "POSTGRES_USER", "POSTGRES_PASSWORD"),
    "rabbitmq": (
        "RABBITMQ_HOST",
        "RABBITMQ_SCHEME",
        "RABBITMQ_AMQP_PORT",
        "RABBITMQ_USER",
        "RABBITMQ_PASSWORD",
    ),
    "s3": ("S3_ENDPOINT_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_SESSION_TOKEN"),
}
#: What needs no quotes.
PLAIN = re.compile(r"[\w./:@=+,-]*", re.ASCII)
HEAD = """\
# Host {name} of {project}, by `make host`: what compose.worker.yaml needs there. Keep it as secret as .env.

# Yours to change; then `make up`. Files of user code are on a volume there, or in its folder DATA_DIR.
{own}
# Written by make.
{rest}"""


def write(host: Host, engine: str | None = None, renewed: tuple[str, ...] = ()) -> None:
    """Write it anew from `.env`, with new logins to the stores of `renewed`; what its owner decided stays."""
    former = host.settings
    settings = env_file.settings()
    own = {name: former.get(name, default) for name, default in OWN.items()}
    own |= {
        name: former[name] if name in former else "" if name == "DATA_DIR" else settings.get(name, "")
        for name in OF_HOST
    }
    rest = {
        "HOST": host.name,
        ENGINE: former.get(ENGINE, "") if engine is None else engine,
        **{name: settings.get(name, "") for name in SHARED},
        "COMPOSE_PROJECT_NAME": compose.project(),
        # For a run queue there.
        "RUNNERS_IN_ALL": settings.get("RUNNERS_IN_ALL") or settings.get("RUNNERS") or str(HERE["RUNNERS"]),
        "DAEMONS_IN_ALL": settings.get("DAEMONS_IN_ALL", ""),
        "HOST_CA": authorities(settings),
        "S3_PUBLIC_URL": public_url(settings),
    }
    for store in store_logins.STORES:
        rest |= access(host, store, settings, former, store in renewed)
    project = rest["COMPOSE_PROJECT_NAME"]
    text = HEAD.format(name=host.name, project=project, own=lines(own), rest=lines(rest))
    if not host.file.exists() or env_file.text_of(host.file) != text:
        env_file.write(host.file, text, like=env_file.env_path())


def lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={quoted(value)}\n" for name, value in values.items())


def quoted(value: str) -> str:
    """As it is, or in single quotes where it may have any character: a password of an outside store."""
    return value if PLAIN.fullmatch(value) else "'" + value.replace("'", "\\'") + "'"


def access(
    host: Host, store: str, settings: Mapping[str, str], former: Mapping[str, str], is_renewed: bool
) -> dict[str, str]:
    """How the host reaches one store: an outside one as this host does, the stack's own by TLS and with its own login."""
    known = store_logins.STORES[store]
    if settings.get(known.outside):
        return {name: settings.get(name, "") for name in OF_OUTSIDE[store]}
    login, password = former.get(known.user, ""), former.get(known.password, "")
    if is_renewed or not login.startswith(prefix(host)):
        login, password = f"{prefix(host)}{secrets.token_hex(store_logins.KEY_BYTES)}", store_logins.secret()
    ports = {name: settings.get(f"CLUSTER_{name}_PORT") or default for name, default in PORTS.items()}
    where = {
        "postgres": {"POSTGRES_PORT": ports["POSTGRES"], "POSTGRES_SSLMODE": "verify-full"},
        "rabbitmq": {"RABBITMQ_SCHEME": "amqps", "RABBITMQ_AMQP_PORT": ports["AMQP"]},
        "s3": {"S3_ENDPOINT_URL": f"https://minio:{ports['S3']}"},
    }
    return {**where[store], known.user: login, known.password: password}


#: The stores' ports at CLUSTER_ADDRESS, as compose/shapes.yaml has them.
PORTS = {"POSTGRES": "5432", "AMQP": "5671", "S3": "9443"}


def prefix(host: Host) -> str:
    """How the names of its logins begin; each login has a new name, so one of a name has one password for ever."""
    return f"host-{host.name}-"


def public_url(settings: Mapping[str, str]) -> str:
    """Where links to objects lead, the same as from the first host."""
    if url := settings.get("S3_PUBLIC_URL") or settings.get("S3_ENDPOINT_URL") or settings.get("DOOR_S3_URL"):
        return url
    return f"https://127.0.0.1:{settings.get('MINIO_PORT') or 9000}"


def authorities(settings: Mapping[str, str]) -> str:
    """Whom its workers trust beside public ones, in base64: the stack's own authority, and a company's."""
    named = settings.get(certificates.SETTING)
    trusted = [certificates.certificates(named)] if named else []
    if env_file.has_internal_tls():
        read = ("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "cat", "certificates")
        trusted.append(compose.output("--progress", "quiet", *read, "/certificates/trust/ca.pem"))
    return base64.b64encode("\n".join(trusted).encode()).decode()
