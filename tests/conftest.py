"""One copy of the stack for all tests that need one: made by `make up`, removed by `make clean`."""

import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from scripts import env_file
from scripts.console import BUILD_FOLDER
from scripts.test import PROJECT as TEST_PROJECT
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack

#: Set to keep the copy for the next session: it is then only looked at by `make up`.
KEEP = "KEEP_STACK"
#: Another name is another copy, so that two sessions can run side by side.
PROJECT = os.environ.get("TEST_PROJECT") or TEST_PROJECT
PORTS = ("DAGIT_PORT", "RABBITMQ_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT", "METRICS_PORT", "FLOWER_PORT",
         "PROMETHEUS_PORT")  # fmt: skip
#: Ports from and below which Linux gives out none by itself (ip_local_port_range).
NOT_GIVEN = (15000, 30000)


# A shell lets what it starts in the background ignore Ctrl-C, and so would all that is started here: tests that
# send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Behind a company's proxy the tests reach what they started themselves without it: this host, and Docker's bridges.
for variable in ("NO_PROXY", "no_proxy"):
    named = filter(None, ["127.0.0.1,localhost,172.16.0.0/12", os.environ.get(variable)])
    os.environ[variable] = ",".join(named)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A healthy copy of the stack with its own project name, ports and secrets."""
    with copy_of_stack(PROJECT) as stack:
        yield stack


@pytest.fixture(scope="session")
def monitoring(stack: Stack) -> Monitoring:
    """The same copy with monitoring switched on, which it stays."""
    print(stack.make("monitoring", timeout=1800).stdout)
    found = Monitoring(stack)
    found.wait_for_targets()
    return found


@contextmanager
def copy_of_stack(project: str, settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """A healthy copy of the stack under a name, with these settings in its .env; removed afterwards."""
    stack = Stack(BUILD_FOLDER / project / ".env")
    if not stack.env.exists():
        prepare(stack.env, project, settings or {})
    try:
        print(stack.make("up", timeout=1800).stdout)
        yield stack
    finally:
        if not os.environ.get(KEEP):
            stack.make("clean")
            stack.env.unlink()


def prepare(env: Path, project: str, settings: Mapping[str, str]) -> None:
    """What this copy decides for itself; `make up` adds the rest."""
    env.parent.mkdir(parents=True, exist_ok=True)
    base = env_file.read(env_file.env_path()).get("BASE_IMAGE")
    values = {"COMPOSE_PROJECT_NAME": project, **settings, **dict(zip(PORTS, free_ports(), strict=True))}
    if base:
        values["BASE_IMAGE"] = base
    env.write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def free_ports(number: int = len(PORTS)) -> list[str]:
    """As many free ports, all different: none that the system gives to whoever asks for any, as unit tests do meanwhile."""
    found: list[str] = []
    for port in random.sample(range(*NOT_GIVEN), NOT_GIVEN[1] - NOT_GIVEN[0]):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(str(port))
        if len(found) == number:
            return found
    raise OSError(f"fewer than {number} ports of {NOT_GIVEN} are free")
