"""The database connections that the stack needs at most, against what its server allows."""

from scripts import env_file
from scripts.console import Failure

#: The setting that raises the limit, and its default in compose.yaml.
LIMIT_VARIABLE = "POSTGRES_MAX_CONNECTIONS"
DEFAULT_LIMIT = 200
#: What a worker process and a run keep at most: DEFAULT_CONNECTIONS of dagster_stack/store/connections.py.
EACH = 2
#: What dagit and daemon with their code servers take when they are busy, and a few for people; and each further daemon.
RESERVED, DAEMON = 60, 20


def room(processes: int) -> int:
    """How many further worker processes find connections beside so many."""
    runs = env_file.number("RUNNERS", 2) * env_file.number("RUNNER_CONCURRENCY", 4)
    free = env_file.number(LIMIT_VARIABLE, DEFAULT_LIMIT) - RESERVED - EACH * (processes + runs)
    return max(free // EACH, 0)


def require_connections(workers: int) -> None:
    """Raise Failure when so many workers could find no connection; it names the setting and its new value."""
    limit = env_file.number(LIMIT_VARIABLE, DEFAULT_LIMIT)
    processes = workers * env_file.number("WORKER_CONCURRENCY", 1) + env_file.number("HEAVY_WORKERS", 1)
    runs = env_file.number("RUNNERS", 2) * env_file.number("RUNNER_CONCURRENCY", 4)
    rest = RESERVED + DAEMON * max(env_file.number("DAEMONS", 1) - 1, 0)
    needed = EACH * (processes + runs) + rest
    if needed > limit:
        raise Failure(
            f"{workers} workers need up to {needed} connections to Postgres ({EACH} for each of {processes}"
            f" worker processes and {runs} runs, {rest} for the rest); it allows {limit}.\n"
            f"    Set {LIMIT_VARIABLE}={needed} or more in {env_file.env_path().name} and run `make up`, which"
            " restarts Postgres; an idle connection costs it about 2 MB."
        )
