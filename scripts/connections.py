"""The database connections that the stack needs at most, against what its server allows."""

from scripts import env_file
from scripts.console import Failure
from scripts.hosts.host import Host, in_all, joined, number

#: The setting that raises the limit, and its default in compose.yaml.
LIMIT_VARIABLE = "POSTGRES_MAX_CONNECTIONS"
DEFAULT_LIMIT = 200
#: What a worker process and a run keep at most: DEFAULT_CONNECTIONS of dagster_stack/store/connections.py.
EACH = 2
#: What dagit and daemon with their code servers take when they are busy, and a few for people; and each further daemon.
RESERVED, DAEMON = 60, 20


def room(processes: int) -> int:
    """How many further worker processes find connections beside so many on this host, and all others."""
    return max((env_file.number(LIMIT_VARIABLE, DEFAULT_LIMIT) - needed(processes)) // EACH, 0)


def require_connections(workers: int) -> None:
    """Raise Failure when so many workers could find no connection; it names the setting and its new value."""
    limit = env_file.number(LIMIT_VARIABLE, DEFAULT_LIMIT)
    processes = workers * env_file.number("WORKER_CONCURRENCY", 1) + env_file.number("HEAVY_WORKERS", 1)
    if (most := needed(processes)) > limit:
        others = f" and those of {len(joined())} hosts" if joined() else ""
        raise Failure(
            f"{workers} workers{others} need up to {most} connections to Postgres ({EACH} for each of"
            f" {processes + processes_elsewhere()} worker processes and {runs()} runs, {rest()} for the rest); it allows {limit}.\n"
            f"    Set {LIMIT_VARIABLE}={most} or more in {env_file.env_path().name} and run `make up`, which"
            " restarts Postgres; an idle connection costs it about 2 MB."
        )


def needed(processes: int) -> int:
    """The connections that so many worker processes of this host and all else take at most."""
    return EACH * (processes + processes_elsewhere() + runs()) + rest()


def runs() -> int:
    """How many runs are driven at once, by the runners of all hosts."""
    return in_all("RUNNERS") * env_file.number("RUNNER_CONCURRENCY", 4)


def rest() -> int:
    return RESERVED + DAEMON * max(in_all("DAEMONS") - 1, 0)


def processes_elsewhere() -> int:
    return sum(map(processes_of, joined()))


def processes_of(host: Host) -> int:
    """The worker processes of a further host."""
    return number(host, "WORKERS", 2) * number(host, "WORKER_CONCURRENCY", 1) + number(
        host, "HEAVY_WORKERS", 0
    )
