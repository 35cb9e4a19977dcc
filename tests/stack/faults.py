"""Faults, each by the means that the real one has: signals from this host, a cut network."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Stands in the command of the program that brings a worker's output into files: no process of the pool.
PUMP = "objects/pump.py"
#: More than any disk has; and what docker/rabbitmq/rabbitmq.conf says. The broker's management may say what was there before.
NO_DISK_FREE, DISK_FREE = "100000GB", "512MB"


def children(stack: Stack, container: str, pid: int) -> list[int]:
    """The processes of a container that this one started, as this host numbers them; without the platform's pump."""
    lines = stack.docker("top", container, "-o", "pid,ppid,args").stdout.splitlines()[1:]
    found = [line.split(maxsplit=2) for line in lines if PUMP not in line]
    return [int(child) for child, parent, *_ in found if int(parent) == pid]


def main_process(stack: Stack, container: str) -> int:
    """The service's own process: the one that the container's init (tini) looks after."""
    return children(stack, container, stack.pid(container))[0]


def code_servers(stack: Stack, container: str) -> list[int]:
    """The processes of Dagit, or of the daemon, that have the user's code."""
    lines = stack.docker("top", container, "-o", "pid,comm").stdout.splitlines()[1:]
    found = [int(pid) for pid, name in map(str.split, lines) if name == "code-server"]
    assert found, f"{container} has no code server"
    return found


def broker_process(stack: Stack, container: str) -> int:
    """RabbitMQ itself: its main process is a shell script that waits for it."""
    return children(stack, container, main_process(stack, container))[0]


def pool_process(stack: Stack, container: str) -> int:
    """The process of a Celery worker that executes steps."""
    return children(stack, container, main_process(stack, container))[0]


def crash(pid: int) -> None:
    """What the kernel does to a process when memory runs out."""
    os.kill(pid, signal.SIGKILL)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Processes that are there and do nothing any more; afterwards they go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            # One that was replaced in the meantime needs no continuing.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def cut_off(stack: Stack, container: str, network: str) -> Iterator[None]:
    """A container without one of its networks: packets get no answer, no connection is closed."""
    name = f"{stack.project}_{network}"
    stack.docker("network", "disconnect", name, container)
    try:
        yield
    finally:
        stack.docker("network", "connect", name, container)


@contextmanager
def worker_with_other_code(stack: Stack, queue: str) -> Iterator[str]:
    """One more worker on a queue, as of another deployment; gives the hash of its code."""
    name, code = f"{stack.project}-other-code", "0123456789ab"
    start = f"printf $CODE > /tmp/code && exec celery -A dagster_stack.app worker -n other@%h -Q {queue} -c 1 -l INFO"
    variables = ("--env", f"CODE={code}", "--env", "DAGSTER_STACK_CODE_FILE=/tmp/code")
    try:
        stack.compose("run", "-d", "--no-deps", "--name", name, *variables, "cli", "sh", "-c", start)
        wait_until(
            lambda: stack.docker("logs", name), 90, "the worker with other code is ready",
            until=lambda logs: " ready." in logs.stderr + logs.stdout,
        )  # fmt: skip
        yield code
    finally:
        stack.docker("rm", "-f", name, check=False)


@contextmanager
def disk_alarm(stack: Stack, timeout: float = 60) -> Iterator[None]:
    """RabbitMQ's disk counts as full: it takes no message any more."""

    def has_alarm() -> bool:
        return bool(stack.broker("nodes")[0]["disk_free_alarm"])

    # Management says for some seconds what it said of an alarm before.
    wait_until(lambda: not has_alarm(), timeout, "no alarm from before")
    try:
        stack.exec("rabbitmq", "rabbitmqctl", "set_disk_free_limit", NO_DISK_FREE)
        wait_until(has_alarm, timeout, "the broker's disk alarm")
        yield
    finally:
        stack.exec("rabbitmq", "rabbitmqctl", "set_disk_free_limit", DISK_FREE)
