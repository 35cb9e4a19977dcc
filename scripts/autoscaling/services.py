"""The services that AUTOSCALE names, as Compose has them: their queues, processes and memory, on this host and on further ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scripts import compose, env_file
from scripts.autoscaling.limits import EXAMPLE, SETTING, Limits, configured
from scripts.console import ROOT, Failure
from scripts.hosts.host import SERVICES_FILE, Host
from scripts.hosts.services import SCALES


@dataclass(frozen=True)
class Service:
    """One that is scaled: where its work waits, how many messages each of its workers has at once, the memory of one in bytes."""

    limits: Limits
    queues: tuple[str, ...]
    concurrency: int
    memory: int

    @property
    def name(self) -> str:
        return self.limits.service


def scaled() -> list[Service]:
    """What is to be scaled by the settings as they are now. Raises Failure that names what is wrong."""
    limits = configured()
    if not limits:
        raise Failure(
            f"Which workers, and between which numbers? Set {EXAMPLE} in {env_file.env_path().name}, then `make autoscale`."
        )
    config = configuration(tuple(path.stat().st_mtime_ns for path in files() if path.exists()))
    return [described(each, config) for each in limits]


def files() -> list[Path]:
    """What Compose's answer comes from, as far as it changes while the stack runs."""
    return [env_file.env_path(), ROOT / "compose.yaml", ROOT / "compose.override.yaml"]


@lru_cache(maxsize=1)
def configuration(_: tuple[int, ...]) -> dict[str, Any]:
    """The services as Compose reads them: half a second, so not at each look."""
    found: dict[str, Any] = json.loads(compose.output("--profile", "*", "config", "--format", "json"))[
        "services"
    ]
    return found


def there(limits: Limits, host: Host) -> Service | None:
    """The same service on a further host, whose file says its memory and processes; None where it can't be on one."""
    settings = {name: value for name, value in host.settings.items() if name not in SCALES.values()}
    config = configuration_there(host, (ROOT / SERVICES_FILE).stat().st_mtime_ns, tuple(settings.items()))
    return described(limits, config) if limits.service in config else None


@lru_cache(maxsize=64)
def configuration_there(host: Host, *_: Any) -> dict[str, Any]:
    """Its services as Compose reads them, until something but their numbers changes."""
    found: dict[str, Any] = json.loads(host.output(*host.compose("config", "--format", "json")))["services"]
    return found


def described(limits: Limits, config: Mapping[str, Any]) -> Service:
    """A service as Compose has it. Raises Failure where it is none of Celery's workers, or its number is not set by .env."""
    name = limits.service
    if name not in config:
        raise Failure(
            f"{SETTING} names {name}, which is no service of compose.yaml or compose.override.yaml: there are"
            f" {', '.join(sorted(each for each in config if each.startswith('worker')))}."
        )
    command = config[name].get("command") or []
    queues = option(command, "-Q", "--queues")
    if not queues:
        raise Failure(
            f"{SETTING} names {name}, whose command has no -Q: which queue it takes from is not known."
        )
    processes = option(command, "-c", "--concurrency")
    if not (processes.isascii() and processes.isdecimal() and int(processes)):
        raise Failure(
            f"{SETTING} names {name}, whose --concurrency must be a number from 1 on; found {processes or 'none'}."
        )
    if limits.variable not in env_file.settings():
        raise Failure(
            f"{SETTING} names {name}, and {limits.variable} is not set. Write {limits.variable}=1 into"
            f" {env_file.env_path().name} and `scale: ${{{limits.variable}:-1}}` into the service."
        )
    return Service(
        limits,
        tuple(queues.split(",")),
        int(processes),
        int(config[name].get("mem_limit") or 0),
    )


def option(command: Sequence[str], *names: str) -> str:
    """The value of an option in a command line; empty where it has none."""
    for word, value in zip(command, [*command[1:], ""], strict=True):
        if word in names:
            return value
        if word.partition("=")[0] in names:
            return word.partition("=")[2]
    return ""
