"""The containers of a stack's workers on an engine, this host's or a further one's: which there are, new ones, and one that goes.

`docker stop` and `docker rm` of the one that was chosen: Compose's own scaling down takes the highest number, perhaps the
one that works. Later it counts containers, so a hole in their numbers is none.
"""

import os
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from scripts import compose, engine, env_file
from scripts.autoscaling.background import aside
from scripts.autoscaling.limits import Limits
from scripts.compose import Container
from scripts.console import ROOT, Failure
from scripts.hosts.host import Host, words

#: Services without which no step is sent: while none of them runs the stack is down.
DRIVERS = {"daemon", "runner"}
RUNNING = ("running", "restarting", "paused")
#: Seconds for the engine to make containers, and to end one that rests.
MAKE_SECS, STOP_SECS = 120, 60
#: Characters of a command in a message.
SHOWN = 60


@dataclass(frozen=True)
class Member(Container):
    """One container of a service. Celery's name of its worker ends with the first digits of its id."""

    #: Empty on this host.
    host: str = ""

    @property
    def is_beginning(self) -> bool:
        return self.state == "running" and self.health == "starting"

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    def is_of(self, worker: str) -> bool:
        return worker.rpartition("@")[2] == self.id


def members(host: Host | None = None, seconds: float = MAKE_SECS) -> list[Member]:
    """All containers of the stack on an engine, but those of `docker compose run`. Raises Failure while it does not answer."""
    listed = command([*compose.listing(compose.project())], seconds, host=host)
    return [Member(**vars(each), host=host.name if host else "") for each in compose.parsed(listed)]


def is_up(found: list[Member]) -> bool:
    return any(each.service in DRIVERS and each.is_running for each in found)


def running(limits: Limits, found: Sequence[Member]) -> int:
    return sum(each.service == limits.service and each.is_running for each in found)


def raise_to(limits: Limits, number: int, host: Host | None = None) -> None:
    """So many containers on an engine, with the present image and settings; those that run are not touched.

    `.env`, or the host's file, first: whoever starts the stack later, or now by hand, has this number too.
    """
    env_file.set_value(limits.variable, str(number), host.file if host else None)
    there = host.compose()[len(host.docker()) :] if host else compose.compose()[1:]
    create = [*there, "--progress", "quiet", "create", "--no-recreate", limits.service]
    command(create, MAKE_SECS, {limits.variable: str(number)}, host=host)
    standing = [
        each.name
        for each in members(host)
        if each.service == limits.service and each.state in compose.STANDING
    ]
    for start in [aside(command, ["start", name], MAKE_SECS, None, host) for name in standing]:
        start.result()


def remove(limits: Limits, container: str, left: int, host: Host | None = None) -> None:
    """End a container that rests, and lower the number in the file: killed in between, the next start makes one more."""
    command(["stop", container], STOP_SECS, host=host)
    command(["rm", container], STOP_SECS, host=host)
    env_file.set_value(limits.variable, str(left), host.file if host else None)


def remove_ended(limits: Limits, found: Sequence[Member], host: Host | None = None) -> bool:
    """Whether there were any that were stopped and not removed, by hand or by a `make autoscale` that was killed just then."""
    ended = [each.name for each in found if each.service == limits.service and each.state == "exited"]
    if ended:
        command(["rm", *ended], STOP_SECS, host=host)
        env_file.set_value(limits.variable, str(running(limits, found)), host.file if host else None)
    return bool(ended)


def command(
    arguments: list[str],
    seconds: float,
    environment: dict[str, str] | None = None,
    host: Host | None = None,
) -> str:
    """What the client prints; raises Failure with its own words."""
    try:
        result = subprocess.run(
            [*(host.docker() if host else [engine.docker()]), *arguments],
            cwd=ROOT,
            env={**(host.environment if host else os.environ), **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"the engine does not answer `docker {' '.join(arguments[:2])}`") from None
    if result.returncode:
        line = textwrap.shorten(" ".join(arguments), SHOWN, placeholder=" …")
        raise Failure(f"`docker {line}`: {words(result.stderr)}")
    return result.stdout
