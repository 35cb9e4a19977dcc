"""`make scale N=8`: as many workers, now and after the next `make up`."""

import os

from scripts import compose, env_file, turns, unfinished
from scripts.autoscaling.limits import MOST
from scripts.connections import require_connections
from scripts.console import Failure, done, main, run_logged
from scripts.hosts import scaling
from scripts.up import start_made, wait_until_healthy


def scale() -> None:
    """Set WORKERS in .env and start or stop workers; those that stay go on undisturbed."""
    compose.require_env_file()
    unfinished.require_none()
    text = os.environ.get("N", "")
    if not (text.isascii() and text.isdecimal()) or int(text) > MOST:
        raise Failure(f"How many workers? make scale N=8 (a whole number; found {text or 'nothing'})")
    if host := os.environ.get("ON"):
        scaling.scale(host, int(text))
        return
    require_connections(int(text))
    running = compose.containers()
    env_file.set_value("WORKERS", text)
    if not any(container.state == "running" for container in running):
        done(f"the stack is down: `make up` will start {text} workers")
        return
    make(int(text))
    done(f"{text} workers are healthy; `make workers` shows them")


def make(workers: int) -> None:
    """So many workers for now; .env keeps its number, and those that stay go on undisturbed."""
    # Not `up`: with --no-deps the next `make up` would make the new ones once more, and without it `init` runs again.
    command = ["--progress", "plain", "create", "--no-recreate", "worker"]
    environment = {"WORKERS": str(workers)}
    run_logged(f"Scaling to {workers} workers", [*compose.compose(), *command], environment=environment)
    start_made()
    wait_until_healthy()


if __name__ == "__main__":
    main(turns.alone(scale))
