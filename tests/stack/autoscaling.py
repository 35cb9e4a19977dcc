"""`make autoscale` at work, as tests on one host and on several touch it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts import env_file
from scripts.console import ROOT
from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

SETTINGS = {"AUTOSCALE": "worker:1..6,worker-heavy:0..1", "AUTOSCALE_COOLDOWN": "10"}
#: Seconds from a message to its first step on a new worker, as it is promised for a machine without other work.
FIRST_STEP_SECS = 15
#: Seconds for six workers that start on two busy cores, and for five that go one after the other.
UP_SECS, DOWN_SECS = 120, 240


@dataclass
class Controller:
    """`make autoscale` as a process of its own, which can be killed."""

    stack: Stack
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.autoscaling"],
                cwd=ROOT, env=self.stack.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None


@contextmanager
def controlled(stack: Stack, log: Path) -> Iterator[Controller]:
    """A stack of one worker and none on `heavy`; afterwards all is as before."""
    before = {name: stack.settings[name] for name in ("WORKERS", "HEAVY_WORKERS")}
    controller = Controller(stack, log)
    env_file.set_values({**SETTINGS, "WORKERS": "1", "HEAVY_WORKERS": "0"}, stack.env)
    try:
        stack.make("up")
        yield controller
    finally:
        controller.end()
        env_file.set_values({**before, "AUTOSCALE": ""}, stack.env)
        stack.make("up")


def workers(stack: Stack, service: str = "worker") -> dict[str, str]:
    """The containers of a service that run, by the names of their workers. Asks the engine alone: Compose takes a processor."""
    labels = [f"label=com.docker.compose.{key}" for key in (f"project={stack.project}", f"service={service}")]
    filters = [part for label in labels for part in ("--filter", label)]
    lines = stack.docker("ps", *filters, "--format", "{{.ID}} {{.Names}}").stdout.splitlines()
    prefix = "dagster" if service == "worker" else "heavy"
    return {f"{prefix}@{identity[:12]}": name for identity, name in map(str.split, lines)}


def wait_for_number(stack: Stack, number: int, seconds: float, service: str = "worker") -> None:
    """So many run, and `.env` says so, which is written before one begins and after one has ended."""
    variable = "WORKERS" if service == "worker" else "HEAVY_WORKERS"
    wait_until(
        lambda: (len(workers(stack, service)), stack.settings[variable]), seconds, f"{number} of {service}",
        until=lambda found: found == (number, str(number)),
    )  # fmt: skip


def status(stack: Stack) -> dict[str, dict[str, object]]:
    """What `make status` says of autoscaling, by service."""
    found = json.loads(stack.make("status", "JSON=1", check=False).stdout)["autoscale"]
    return {each["service"]: each for each in found}


def feeds(stack: Stack) -> list[str]:
    """Containers of controllers that are alive or were killed."""
    labels = [f"label=com.docker.compose.project={stack.project}", "label=com.docker.compose.service=cli"]
    filters = [part for label in labels for part in ("--filter", label)]
    return stack.docker("ps", *filters, "--format", "{{.Names}}").stdout.split()


@dataclass(frozen=True)
class Haste:
    """How soon a new worker must take a step, by how many processes waited for each processor when the work came."""

    slowed: float = field(default_factory=lambda: max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))

    def require(self, stack: Stack, run_id: str, former: Collection[str], step: str = "") -> None:
        """One that is none of the former took one of these steps soon after the first of them was sent."""
        sent = min(each.at for each in runs.sent(stack, run_id) if each.step.startswith(step))
        began = min(each.at for each in runs.executions(stack, run_id) if each.worker not in former)
        print(
            f"first step on a new worker after {began - sent:.1f} s, {self.slowed:.1f} processes for each processor"
        )
        assert began - sent <= FIRST_STEP_SECS * self.slowed
