"""What AUTOSCALE says: between which numbers of workers each service is kept."""

import re
from dataclasses import dataclass

from scripts import env_file
from scripts.console import Failure

SETTING = "AUTOSCALE"
EXAMPLE = "AUTOSCALE=worker:1..8,worker-heavy:0..2"
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
        match = re.fullmatch(r"(worker(?:-[a-z0-9-]+)?):(\d{1,5})\.\.(\d{1,5})", part, re.ASCII)
        if not match:
            raise Failure(f"{SETTING}: `{part}` is not of the form worker:1..8. For example: {EXAMPLE}")
        limits = Limits(match[1], int(match[2]), int(match[3]))
        if not limits.least <= limits.most <= MOST or limits.most == 0:
            raise Failure(f"{SETTING}: `{part}` must go from a number to a greater one, at most {MOST}.")
        if limits.service in {each.service for each in found}:
            raise Failure(f"{SETTING} names {limits.service} twice.")
        found.append(limits)
    return found
