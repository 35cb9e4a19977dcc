"""The stack's services while `make bench` measures: so many workers, with the code that measures; afterwards as before."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts import compose, env_file, standstill
from scripts.console import ROOT, run_logged
from scripts.hosts.host import wanted
from scripts.scale import make
from scripts.up import start_made, wait_until_healthy

#: Mounts the benchmark's code, which is in no image, into services; Compose reads this file beside its usual ones.
CODE = ROOT / "bench"
MOUNT = CODE / "compose.yaml"
#: Compose reads the first of these that exists beside compose.yaml, unless it is told which files to read.
OVERRIDES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)
#: Services that load the benchmark's code for its steps; and further ones for launches.
EXECUTE_STEPS, LAUNCH_RUNS = ("worker", "worker-heavy"), ("dagit", "daemon", "runner")


#: The settings by which Compose makes so many of a service.
NUMBERS = {"worker": "WORKERS", "worker-heavy": "HEAVY_WORKERS"}


@dataclass
class Services:
    """How many containers each service had before; whether workers need the benchmark's code, and which services have it."""

    before: Counter[str]
    needs_code: bool = False
    with_code: set[str] = field(default_factory=set)

    def scale(self, workers: int) -> None:
        """As many workers, for now; .env keeps its number."""
        if self.needs_code:
            self._mount(f"{workers} workers with the benchmark's code", EXECUTE_STEPS, worker=workers)
        elif workers != running("worker"):
            make(workers)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Dagit, daemon and runners with the benchmark's jobs as well, and no daemon elsewhere that would lead without them;
        afterwards without."""
        elsewhere = standstill.begin("daemon".__eq__, wanted())
        try:
            self._mount("Adding the jobs to Dagit", LAUNCH_RUNS)
            yield
        finally:
            self._unmount("Taking the jobs out of Dagit", LAUNCH_RUNS)
            standstill.end(elsewhere)

    def restore(self) -> None:
        """As many workers as before, and no service with the benchmark's code."""
        if self.with_code:
            self._unmount("Taking the benchmark's code out of the services", sorted(self.with_code))
        else:
            self.scale(self.before["worker"])

    def _mount(self, title: str, services: Sequence[str], **numbers: int) -> None:
        self.with_code.update(services)
        run_compose(title, ["up", "--detach", "--no-deps", *services], self._numbers(**numbers) | code())
        wait_until_healthy()

    def _unmount(self, title: str, services: Sequence[str]) -> None:
        # Such as `make up` makes them, which goes on with them; see scale.make.
        run_compose(title, ["create", *services], self._numbers())
        start_made()
        wait_until_healthy()
        self.with_code.difference_update(services)

    def _numbers(self, **numbers: int) -> dict[str, str]:
        wanted = {**self.before, **numbers}
        return {variable: str(wanted.get(service, 0)) for service, variable in NUMBERS.items()}


def running(service: str) -> int:
    return sum(each.service == service and each.state == "running" for each in compose.containers())


def run_compose(title: str, command: Sequence[str], environment: dict[str, str]) -> None:
    """Services that are so already, with these variables, go on undisturbed."""
    run_logged(title, [*compose.compose(), "--progress", "plain", *command], environment=environment)


def code() -> dict[str, str]:
    """The variables with which Compose gives services the code that measures, beside all that it reads without them."""
    settings = env_file.settings()
    separator = settings.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
    if named := settings.get("COMPOSE_FILE"):
        files = named.split(separator)
    else:
        files = ["compose.yaml", *[name for name in OVERRIDES if (ROOT / name).exists()][:1]]
    return {"COMPOSE_FILE": separator.join([*files, str(MOUNT)])}
