"""What AUTOSCALE says: between which numbers of workers each service is kept."""

import re
from dataclasses import dataclass

from scripts import env_file
from scripts.console import Failure

SETTING = "AUTOSCALE"
EXAMPLE = "AUTOSCALE=worker:1..8,worker-heavy:0..2"
#: Services that are scaled by hand, and the setting of each.
OTHERS = {"runner": "RUNNERS", "daemon": "DAEMONS"}
#: More is a slip of the finger on one host.
MOST = 10_000


@dataclass(frozen=True)
class Limits:
    """The fewest and the most workers of a service."""

    service: str
    least: int
    most: int

    @property
    def variable(self) -> str:
        """What sets the service's number in .env: WORKERS of `worker`, HEAVY_WORKERS of `worker-heavy`."""
        kind = self.service.removeprefix("worker").strip("-")
        return f"{kind.upper().replace('-', '_')}_WORKERS" if kind else "WORKERS"


def configured() -> list[Limits]:
    """Those of the settings as they are now. Raises Failure that names what is wrong."""
    return parsed(env_file.settings().get(SETTING, ""))


def parsed(text: str) -> list[Limits]:
    """Raises Failure for what is not of the form `worker:1..8,worker-heavy:0..2`."""
    found: list[Limits] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z0-9-]+):(\d{1,5})\.\.(\d{1,5})", part, re.ASCII)
        if not match:
            raise Failure(f"{SETTING}: `{part}` is not of the form worker:1..8. For example: {EXAMPLE}")
        limits = Limits(match[1], int(match[2]), int(match[3]))
        if problem := objection(limits):
            raise Failure(f"{SETTING}: `{part}`: {problem}.")
        if limits.service in {each.service for each in found}:
            raise Failure(f"{SETTING} names {limits.service} twice: take one of the two out.")
        found.append(limits)
    return found


def objection(limits: Limits) -> str:
    """What is wrong with them, with the cure; empty when nothing is."""
    name, least, most = limits.service, limits.least, limits.most
    if name in OTHERS:
        return f"{name} is no service of workers: {OTHERS[name]} in {env_file.env_path().name} says how many"
    if not re.fullmatch("worker(-.+)?", name):
        return f"{name} is no service of workers: there are worker, worker-heavy, and worker-… of your own"
    if least > most:
        return f"the fewest come first: {name}:{most}..{least}"
    if most == 0:
        return "that is none at all: take it out, or allow 1"
    return f"at most {MOST} workers" if most > MOST else ""
