"""The vocabulary of the drills: each fault by the means of the real one, and what makes it over again.

Each is a context, so that it is over afterwards whatever happened in between.
"""

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from tests.stack import faults as processes
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: The MinIO policy of the stack's user, as `init` names it.
POLICY = "dagster-stack"
#: Seconds within which a fault must be seen to be there.
SEEN_SECS = 60
#: Bytes that a disk is filled by at a time: a page.
PIECE = 4096
#: The begin of a program that connects to Postgres as the stack does.
CONNECT = """
import os, sys, time, psycopg2
ME, held, told = "greedy", [], False
where = dict(host="DAGSTER_POSTGRES_HOST", port="DAGSTER_POSTGRES_PORT", dbname="DAGSTER_POSTGRES_DB",
             user="DAGSTER_POSTGRES_USER", password="DAGSTER_POSTGRES_PASSWORD")
where = {name: os.environ[variable] for name, variable in where.items()}
"""
#: Takes every connection that Postgres has to give, ends those of the others, and keeps all while it lives.
GREEDY = f"""{CONNECT}
while True:
    try:
        held.append(psycopg2.connect(application_name=ME, **where))
    except psycopg2.OperationalError as error:
        if not told:
            with held[0].cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                               " WHERE usename = current_user AND application_name <> %s", [ME])
            told = True
        print("none left:", error, flush=True)
        time.sleep(0.1)  # How greedy it is: what others give back is taken so soon.
"""
#: Takes so many connections, and keeps them while it lives.
HOLDING = f"""{CONNECT}
held = [psycopg2.connect(application_name=ME, **where) for _ in range(int(sys.argv[1]))]
print("held", flush=True)
time.sleep(3600)  # Until it is removed.
"""
#: Connections until this share of them is taken.
TO_BE_TAKEN = """
SELECT floor({share} * (current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int))
    - (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())
"""


@dataclass(frozen=True)
class Fault:
    """A fault as the table names it, and what it is done to."""

    name: str
    service: str
    #: There inside, over afterwards.
    inject: Callable[[Stack], AbstractContextManager[None]]
    #: Seconds that it lasts once it is there; None: it is over as soon as it has come, as a crash is.
    lasts: float | None = None
    #: Whether it parts workers from the broker: each must take work again within a minute.
    of_broker: bool = False


# --- processes and containers ----------------------------------------------------------------------------


def running(stack: Stack, service: str) -> list[str]:
    """The names of a service's running containers, in order."""
    return sorted(entry.name for entry in stack.containers(service) if entry.state == "running")


def crash(stack: Stack, containers: list[str]) -> None:
    """Kill the main processes of containers at once. `docker kill` would count as a manual stop: no restart."""
    pids = {container: stack.pid(container) for container in containers}
    assert all(pids.values()), f"not running: {pids}"
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    for container, pid in pids.items():
        wait_until(lambda: stack.pid(container) != pid, SEEN_SECS, f"{container} has ended", pause=0.1)  # noqa: B023


def crashed(service: str, container: str | None = None) -> Fault:
    """SIGKILL for a container of a service."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        crash(stack, [container or running(stack, service)[0]])
        yield

    return Fault(f"{service} SIGKILL", service, inject, of_broker=service == "rabbitmq")


def all_crashed(service: str) -> Fault:
    """SIGKILL for all containers of a service at once."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        crash(stack, running(stack, service))
        yield

    return Fault(f"every {service} SIGKILL", service, inject)


def pool_process_killed(container: str | None = None) -> Fault:
    """SIGKILL for the process in which a worker executes steps: its main process lives on."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        pid = processes.pool_process(stack, container or running(stack, "worker")[0])
        processes.crash(pid)
        wait_until(
            lambda: not os.path.exists(f"/proc/{pid}"), SEEN_SECS, f"process {pid} has ended", pause=0.1
        )
        yield

    return Fault("a pool process SIGKILL", "worker", inject)


def paused(service: str, seconds: float, container: str | None = None) -> Fault:
    """A container that is there and does nothing."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        name = container or running(stack, service)[0]
        stack.docker("pause", name)
        try:
            yield
        finally:
            stack.docker("unpause", name)

    return Fault(
        f"{service} paused {seconds:.0f} s", service, inject, seconds, of_broker=service == "rabbitmq"
    )


def restarted(service: str) -> Fault:
    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        stack.compose("restart", service)
        yield

    return Fault(f"{service} restarted", service, inject, 0, of_broker=service == "rabbitmq")


def stopped(service: str, seconds: float = 5) -> Fault:
    """`docker compose stop`, as an operator does it."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        names = running(stack, service)
        stack.compose("stop", service)
        try:
            yield
        finally:
            # Compose would start what the service needs as well, and fail when that is paused.
            stack.docker("start", *names)

    return Fault(f"{service} stopped", service, inject, seconds, of_broker=service == "rabbitmq")


def everything_crashed() -> Fault:
    """The machine goes down: all containers at once, then `docker compose up -d`."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        everything = [entry.name for entry in stack.containers() if entry.state == "running"]
        try:
            crash(stack, everything)
            yield
        finally:
            stack.compose("up", "--detach", timeout=600)

    return Fault("the whole stack SIGKILL", "all", inject)


# --- networks and stores ---------------------------------------------------------------------------------


def cut_off(service: str, network: str, seconds: float, container: str | None = None) -> Fault:
    """A container without one of its networks."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        with processes.cut_off(stack, container or running(stack, service)[0], network):
            yield

    return Fault(
        f"network {service}-{network} cut {seconds:.0f} s",
        service,
        inject,
        seconds,
        of_broker=network == "broker",
    )


def disk_alarm(seconds: float) -> Fault:
    """RabbitMQ's disk counts as full: it takes no message any more."""

    def inject(stack: Stack) -> AbstractContextManager[None]:
        return processes.disk_alarm(stack, SEEN_SECS)

    return Fault(f"rabbitmq disk alarm {seconds:.0f} s", "rabbitmq", inject, seconds, of_broker=True)


def memory_alarm() -> Fault:
    """RabbitMQ's memory counts as full: it takes no message any more."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        def limit(memory: int) -> None:
            stack.exec("rabbitmq", "rabbitmqctl", "set_vm_memory_high_watermark", "absolute", str(memory))

        before = int(stack.broker("nodes")[0]["mem_limit"])
        try:
            limit(1)
            yield
        finally:
            limit(before)

    return Fault("rabbitmq memory alarm", "rabbitmq", inject, of_broker=True)


def connections_exhausted(seconds: float) -> Fault:
    """Somebody takes all of Postgres's connections, and ends those of the stack."""

    def inject(stack: Stack) -> AbstractContextManager[None]:
        return somebody(stack, "none left", GREEDY)

    return Fault(f"postgres connections exhausted {seconds:.0f} s", "postgres", inject, seconds)


def connections_held(share: float) -> Fault:
    """Somebody holds so many of Postgres's connections that this share of them is taken."""

    def inject(stack: Stack) -> AbstractContextManager[None]:
        ((number,),) = stack.sql(" ".join(TO_BE_TAKEN.format(share=share).split()))
        return somebody(stack, "held", HOLDING, number)

    return Fault(f"postgres connections held: {share:.0%}", "postgres", inject)


@contextmanager
def somebody(stack: Stack, told: str, program: str, *arguments: str) -> Iterator[None]:
    """Somebody else's program with connections to Postgres, in a container of its own; there once it says so."""
    container = f"{stack.project}-greedy"
    stack.docker("rm", "-f", container, check=False)
    command = ("python", "-c", program, *arguments)
    stack.compose("run", "-d", "--no-deps", "--name", container, "cli", *command)
    try:
        wait_until(
            lambda: stack.docker("logs", container), SEEN_SECS, f"“{told}” of {container}",
            until=lambda log: told in log.stdout, pause=0.2,
        )  # fmt: skip
        yield
    finally:
        stack.docker("rm", "-f", container)


def postgres_read_only(seconds: float) -> Fault:
    """Postgres takes no write, in old sessions and new ones: what a failover leaves of the former primary."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        def set_to(value: str) -> None:
            setting = f"ALTER SYSTEM SET default_transaction_read_only = {value}"
            commands = ("-c", setting, "-c", "SELECT pg_reload_conf()")
            stack.exec("postgres", "psql", "-X", "-q", "-U", "postgres", *commands)

        set_to("on")
        try:
            yield
        finally:
            set_to("off")

    return Fault(f"postgres read-only {seconds:.0f} s", "postgres", inject, seconds)


def policy_withdrawn(seconds: float) -> Fault:
    """MinIO answers every request of the stack's user with an error."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        admin, user = minio_admin(stack), stack.settings["S3_ACCESS_KEY"]
        admin.detach_policy([POLICY], user=user)
        try:
            yield
        finally:
            admin.attach_policy([POLICY], user=user)

    return Fault(f"minio policy withdrawn {seconds:.0f} s", "minio", inject, seconds)


def runs_undeletable(seconds: float) -> Fault:
    """Postgres deletes no run."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        stack.sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused by a drill'; END $$;"
            " CREATE TRIGGER refuse BEFORE DELETE ON runs EXECUTE FUNCTION refuse()"
        )
        try:
            yield
        finally:
            stack.sql("DROP TRIGGER refuse ON runs; DROP FUNCTION refuse")

    return Fault(f"runs can't be deleted for {seconds:.0f} s", "postgres", inject, seconds)


def repository_closed(seconds: float) -> Fault:
    """The repository of backups takes no file of Postgres' journal: its folder can't be written."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        def allow(mode: str) -> None:
            stack.exec("postgres", "chmod", mode, "/backups/postgres/archive/stack/17-1")

        allow("u-w")
        try:
            yield
        finally:
            allow("u+w")

    return Fault(f"repository of backups closed {seconds:.0f} s", "backup", inject, seconds)


def disk_full(service: str, disk: Path, seconds: float) -> Fault:
    """Not one byte is free on the disk of a store's volume."""

    @contextmanager
    def inject(_: Stack) -> Iterator[None]:
        filling = disk / "filling"
        try:
            with filling.open("wb") as file:
                fill(file.fileno())
            yield
        finally:
            filling.unlink()

    return Fault(f"{service} disk full {seconds:.0f} s", service, inject, seconds)


def fill(file: int) -> None:
    """Let a file grow until its disk is full: by pieces, since the store writes at the same time."""
    try:
        while True:
            os.posix_fallocate(file, os.fstat(file).st_size, PIECE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def disk_read_only(service: str, disk: Path, seconds: float) -> Fault:
    """The kernel lets nobody write to the disk of a store's volume, as after an error of the disk."""

    def remount(how: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,{how}", disk], check=False).returncode == 0

    @contextmanager
    def inject(_: Stack) -> Iterator[None]:
        # Not while a file is open for writing: then the kernel says that the disk is busy.
        wait_until(lambda: remount("ro"), SEEN_SECS, f"{disk} is read-only", pause=0.02)
        try:
            yield
        finally:
            assert remount("rw")

    return Fault(f"{service} disk read-only {seconds:.0f} s", service, inject, seconds)


def minio_admin(stack: Stack) -> MinioAdmin:
    keys = StaticProvider("root", stack.settings["MINIO_ROOT_PASSWORD"])
    endpoint = f"127.0.0.1:{stack.settings['MINIO_PORT']}"
    return MinioAdmin(endpoint=endpoint, credentials=keys, secure=False)


# --- the operator ----------------------------------------------------------------------------------------


def scaled(service: str, *numbers: int) -> Fault:
    """So many containers, one number after the other; afterwards as many as before."""

    @contextmanager
    def inject(stack: Stack) -> Iterator[None]:
        before = len(running(stack, service))
        try:
            for number in numbers:
                stack.compose("scale", "--no-deps", f"{service}={number}", timeout=300)
                assert len(running(stack, service)) == number
            yield
        finally:
            stack.compose("scale", "--no-deps", f"{service}={before}", timeout=300)

    return Fault(f"{service} scaled {' → '.join(map(str, numbers))}", service, inject, 0)
