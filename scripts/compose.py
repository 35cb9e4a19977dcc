"""Docker Compose as the scripts call it: the right client, the right .env; and what the engine says of its containers."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import NoReturn

from scripts import env_file
from scripts.console import ROOT, Failure, main
from scripts.engine import ask, docker

#: A container in one line, and its health and its exit code in the words of its status: "Up 2 minutes (health: starting)".
FORMAT = '{{.Names}}\t{{.Label "com.docker.compose.service"}}\t{{.State}}\t{{.Status}}\t{{.ID}}'
HEALTH = re.compile(r"\((?:health: )?(healthy|unhealthy|starting)\)$")
ENDED = re.compile(r"(?:Exited|Restarting) \((-?\d+)\)")
#: States of a container that was made or stopped.
STANDING = ("created", "exited")
#: Services that do their part at each start, and end.
ONE_SHOTS = ("init", "certificates")


@dataclass(frozen=True)
class Container:
    """One container of the stack. `health` is empty where there is no check, and while it is paused."""

    name: str
    service: str
    state: str
    health: str
    exit_code: int
    #: Its first twelve digits.
    id: str = ""

    @property
    def is_well(self) -> bool:
        """Running and healthy, or a one-shot that ended well."""
        if self.service in ONE_SHOTS:
            return self.state == "exited" and self.exit_code == 0
        return self.state == "running" and self.health in ("", "healthy")

    @property
    def is_abandoned(self) -> bool:
        """A replacement that an interrupted Compose made and did not yet rename: its name is not the usual one."""
        return self.state == "created" and re.match("[0-9a-f]{12}_", self.name) is not None

    @property
    def condition(self) -> str:
        if self.state == "exited":
            return f"ended with {self.exit_code}"
        return self.health or self.state


def compose() -> list[str]:
    """The start of every Compose command line."""
    env = ["--env-file", str(env_file.env_path())] if "STACK_ENV_FILE" in os.environ else []
    return [docker(), "compose", "--project-directory", str(ROOT), *env]


def become(*arguments: str) -> NoReturn:
    """Replace this process by Compose, so that terminal and signals are its own."""
    require_env_file()
    command = [*compose(), *arguments]
    sys.stdout.flush()
    os.execvp(command[0], command)


def output(*arguments: str, given: str | None = None) -> str:
    """What Compose prints, `given` on its standard input; raises Failure with its own words."""
    result = subprocess.run(
        [*compose(), *arguments], cwd=ROOT, input=given, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise Failure(f"`docker compose {' '.join(arguments)}` failed:\n{result.stderr.strip()}")
    return result.stdout


def config_hashes() -> dict[str, str]:
    """What `up` would label each service's containers with now.

    Before it computes them it leaves out dependencies that are not started, such as the containers of
    outside stores. `config --hash` does not, so it gets a configuration without them.
    """
    config = json.loads(output("config", "--format", "json"))
    services = config["services"]
    for service in services.values():
        needs = service.pop("depends_on", None) or {}
        if started := {name: need for name, need in needs.items() if name in services}:
            service["depends_on"] = started
    lines = output("--file", "-", "config", "--hash", "*", given=json.dumps(config))
    return dict(line.split() for line in lines.splitlines())


def containers() -> list[Container]:
    """The project's containers, ended ones too; not those of `docker compose run`, which come and go."""
    return parsed(engine_says(*listing(project())))


def listing(project: str) -> tuple[str, ...]:
    """What the client is asked for a project's containers. Compose's own `ps` costs ten times as much: it reads all files first."""
    labels = (f"project={project}", "oneoff=False")
    filters = (part for label in labels for part in ("--filter", f"label=com.docker.compose.{label}"))
    return ("ps", "--all", *filters, "--format", FORMAT)


def parsed(listed: str) -> list[Container]:
    """The lines of such a list, by name."""
    found = []
    for line in listed.splitlines():
        name, service, state, status, identity = line.split("\t")
        health, ended = HEALTH.search(status), ENDED.match(status)
        found.append(
            Container(
                name, service, state, health[1] if health else "", int(ended[1]) if ended else 0, identity
            )
        )
    return sorted(found, key=lambda each: each.name)


def engine_says(*arguments: str) -> str:
    """What the client prints; raises Failure with its own words."""
    result = subprocess.run([docker(), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(f"`docker {arguments[0]}` failed:\n{result.stderr.strip()}")
    return result.stdout


def published_ports() -> set[int]:
    """The ports of this host that the project's containers hold. Asks the engine: no image is needed yet."""
    label = f"label=com.docker.compose.project={project()}"
    # Neighbours are printed as a range: 127.0.0.1:9000-9001->9000-9001/tcp.
    ranges = re.findall(r":(\d+)(?:-(\d+))?->", ask("ps", "--filter", label, "--format", "{{.Ports}}"))
    return {port for first, last in ranges for port in range(int(first), int(last or first) + 1)}


def project() -> str:
    return env_file.settings().get("COMPOSE_PROJECT_NAME") or "dagster-celery-stack"


def require_own_project() -> None:
    """Raises Failure where COMPOSE_PROJECT_NAME of the shell is another project's name.

    To Compose that project's containers would be this stack's, left over, and be removed.
    """
    named = os.environ.get("COMPOSE_PROJECT_NAME")
    if not named or named == env_file.read(env_file.env_path()).get("COMPOSE_PROJECT_NAME"):
        return
    label = f"label=com.docker.compose.project={named}"
    found = ask("ps", "--all", "--filter", label, "--format", '{{.Label "com.docker.compose.service"}}')
    if found and (
        foreign := set(found.split()) - set(output("--profile", "*", "config", "--services").split())
    ):
        raise Failure(
            f"COMPOSE_PROJECT_NAME={named} in the environment is the name of another project, with"
            f" {', '.join(sorted(foreign))}: unset it, as {env_file.env_path().name} has this stack's name."
        )


def require_env_file() -> None:
    """Raises Failure when `make up` has not run yet, or the shell names another project."""
    if not env_file.env_path().exists():
        raise Failure(
            f"There is no {env_file.env_path().name} yet, so no stack was started from here."
            " `make up` writes it and starts one."
        )
    require_own_project()


if __name__ == "__main__":
    main(lambda: become(*sys.argv[1:]))
