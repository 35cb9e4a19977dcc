"""`make scale N=8 ON=box2`: as many workers on a further host."""

from scripts import env_file
from scripts.connections import require_connections
from scripts.console import Failure, done
from scripts.hosts import services
from scripts.hosts.host import named


def scale(name: str, number: int) -> None:
    """Set WORKERS in the host's file, and start or stop workers there; those that stay go on undisturbed."""
    host = named(name)
    if not host.engine:
        raise Failure(
            f"{name} is looked after by hand: set WORKERS in its {host.file.name} there, and start it anew."
        )
    if problem := host.problem():
        raise Failure(f"{name} can't be reached, and nothing was changed: {problem}")
    former = host.settings.get("WORKERS", "")
    env_file.set_value("WORKERS", str(number), host.file)
    try:
        require_connections(env_file.number("WORKERS", 2))
    except Failure:
        env_file.set_value("WORKERS", former, host.file)
        raise
    services.end(services.begin([host]))
    done(f"{number} workers on {name} are healthy; `make workers` shows them")
