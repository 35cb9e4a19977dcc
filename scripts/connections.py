"""The database connections that the stack needs at most, against what its server allows."""

from scripts import env_file
from scripts.console import Failure
from scripts.hosts.host import Host, joined, number

#: The setting that raises the limit, and its default in compose.yaml.
LIMIT_VARIABLE = "POSTGRES_MAX_CONNECTIONS"
DEFAULT_LIMIT = 200
#: What a worker process and a run keep at most: DEFAULT_CONNECTIONS of dagster_stack/store/connections.py.
EACH = 2
#: What dagit and daemon with their code servers take when they are busy, and a few for people.
RESERVED = 60


def require_connections(workers: int) -> None:
    """Raise Failure when so many workers could find no connection; it names the setting and its new value."""
    limit = env_file.number(LIMIT_VARIABLE, DEFAULT_LIMIT)
    hosts = joined()
    processes = workers * env_file.number("WORKER_CONCURRENCY", 1) + env_file.number("HEAVY_WORKERS", 1)
    processes += sum(map(processes_of, hosts))
    runners = env_file.number("RUNNERS", 2) + sum(number(host, "RUNNERS", 0) for host in hosts)
    runs = runners * env_file.number("RUNNER_CONCURRENCY", 4)
    needed = EACH * (processes + runs) + RESERVED
    if needed > limit:
        raise Failure(
            f"{workers} workers{f' and those of {len(hosts)} hosts' if hosts else ''} need up to {needed} connections to Postgres ({EACH} for each of {processes}"
            f" worker processes and {runs} runs, {RESERVED} for the rest); it allows {limit}.\n"
            f"    Set {LIMIT_VARIABLE}={needed} or more in {env_file.env_path().name} and run `make up`, which"
            " restarts Postgres; an idle connection costs it about 2 MB."
        )


def processes_of(host: Host) -> int:
    """The worker processes of a further host."""
    return number(host, "WORKERS", 2) * number(host, "WORKER_CONCURRENCY", 1) + number(
        host, "HEAVY_WORKERS", 0
    )
